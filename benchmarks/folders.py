"""Image files in folders or zips, decoded once: pixels are kept in the cache and mapped into memory."""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rich.progress import track
from torch import Tensor

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif"}

Pixels = NDArray[np.uint8]


class DataError(ValueError):
    """Data are missing or broken; the message says what, where it was looked for, and how to mend it."""


@dataclass(frozen=True)
class ImageTree:
    """The image files of a folder or zip, as ``<class>/.../<file>``, sorted by name.

    Attributes:
        path: of the folder or zip.
        inside: the folder in it that holds one folder per class; "" for its top.
        files: names relative to ``inside``.
    """

    path: Path
    inside: str
    files: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted; the label of a class is its index."""
        return sorted({_class_of(name) for name in self.files})

    @property
    def labels(self) -> Tensor:
        """Shape (files,), int64."""
        index = {name: i for i, name in enumerate(self.classes)}
        return torch.tensor([index[_class_of(name)] for name in self.files])

    def subset(self, files: Sequence[str]) -> "ImageTree":
        """Return a tree of some of the files."""
        return ImageTree(self.path, self.inside, tuple(files))

    def path_of(self, name: str) -> str:
        """Return the path of a file relative to ``path``."""
        return f"{self.inside}/{name}" if self.inside else name


def find_tree(path: Path, *inside: str) -> ImageTree | None:
    """Return the image files below the first folder of ``inside`` that has any; None if no folder has.

    Args:
        path: of a folder or zip.
        inside: names of folders in it; "" for its top.
    """
    names = _file_names(path)
    for folder in inside:
        prefix = f"{folder}/" if folder else ""
        below = sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))
        files = [name for name in below if "/" in name and Path(name).suffix.lower() in SUFFIXES]
        if files:
            return ImageTree(path, folder, tuple(files))
    return None


def read_images(tree: ImageTree, size: int) -> Tensor:
    """Return the pixels of all files, shape (files, 3, size, size), uint8.

    The shorter side is resized to ``size``, and the centre is cropped.

    Raises:
        DataError: a file cannot be read as an image.
    """
    source = [str(tree.path.resolve()), tree.inside, str(size)]
    key = "\n".join([*source, *_file_versions(tree)])
    return decode_images(
        lambda: _open_images(tree),
        key,
        count=len(tree.files),
        size=size,
        title=tree.path.name,
    )


def decode_images(
    images: Callable[[], Iterator[Image.Image]], key: str, *, count: int, size: int, title: str
) -> Tensor:
    """Return the pixels of images, shape (count, 3, size, size), uint8; from the cache if it has them.

    Args:
        images: yields the images.
        key: a text that changes whenever the images do.
        count: number of images.
        size: height and width of the result.
        title: text of the progress bar.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    file = cache_folder() / "decoded" / f"{name}.npy"
    if not file.exists():
        pixels = np.empty((count, 3, size, size), np.uint8)
        progress = track(images(), f"reading {title}", total=count, transient=True)
        for i, image in enumerate(progress):
            pixels[i] = _resize_and_crop(image, size)
        _save(file, pixels)
    return torch.from_numpy(np.load(file, mmap_mode="c"))  # copy on write: the file stays as it is


def cache_folder() -> Path:
    """Return the folder for files that can be made again: ``MAS_CACHE``, or ``mas`` in the user's cache."""
    own = os.environ.get("MAS_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(own) if own else Path(users) / "mas"
    return folder.expanduser()


def _class_of(name: str) -> str:
    return name.split("/", maxsplit=1)[0]


def _file_names(path: Path) -> list[str]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    if path.is_dir():
        return [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    problem = "is no folder and no zip" if path.exists() else "no such folder or zip"
    raise DataError(f"{path}: {problem}")


def _file_versions(tree: ImageTree) -> Iterator[str]:
    """Yield each file's name with a value that changes when the file does."""
    if tree.path.is_dir():
        for name in tree.files:
            stat = (tree.path / tree.path_of(name)).stat()
            yield f"{name} {stat.st_size} {stat.st_mtime_ns}"
        return
    with zipfile.ZipFile(tree.path) as archive:
        for name in tree.files:
            info = archive.getinfo(tree.path_of(name))
            yield f"{name} {info.CRC}"


def _open_images(tree: ImageTree) -> Iterator[Image.Image]:
    if tree.path.is_dir():
        for name in tree.files:
            file = tree.path / tree.path_of(name)
            yield _open_image(file.read_bytes(), str(file))
        return
    with closing(zipfile.ZipFile(tree.path)) as archive:
        for name in tree.files:
            member = tree.path_of(name)
            yield _open_image(_read_member(archive, member), f"{tree.path}: {member}")


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, OSError, zlib.error) as error:
        raise DataError(f"{archive.filename}: is damaged at {name} ({error}); fetch it again") from None


def _open_image(data: bytes, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: is no readable image ({error}); remove it or put a whole one in its place") from None
    return image


def _resize_and_crop(image: Image.Image, size: int) -> Pixels:
    """Return pixels of shape (3, size, size): the shorter side resized to ``size``, the centre cropped."""
    image = image.convert("RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left = (width - size) // 2
        top = (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        image = resized.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


def _save(file: Path, pixels: Pixels) -> None:
    """Write the whole file or nothing: several processes may write it at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as part:
        np.save(part, pixels)
    Path(part.name).replace(file)
