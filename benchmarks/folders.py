"""Image files in folders or zips, decoded once: pixels are kept in the cache and mapped into memory."""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from mas.benchmarks.archives import check_members, open_zip, read_member
from mas.benchmarks.cache import Pixels, cached_array
from mas.benchmarks.errors import DataError, reason

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif"}

MAX_PIXELS = 2**28
"""Of an image resized, before it is cropped. Of an image in its file, Pillow has a limit of its own."""


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
        DataError: a file cannot be read as an image, or a zip has one that is encrypted, packed by a method that
            Python does not know, or unpacks to far more than it is (see `mas.benchmarks.archives`).
    """
    source = [str(tree.path.resolve()), tree.inside, str(size)]
    key = "\n".join([*source, *_file_versions(tree)])
    return decode_images(
        lambda: _open_images(tree, size),
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
    shape = (count, 3, size, size)

    def decoded() -> Pixels:
        pixels = np.empty(shape, np.uint8)
        progress = track(images(), f"reading {title}", total=count, transient=True)
        for i, image in enumerate(progress):
            pixels[i] = _resize_and_crop(image, size)
        return pixels

    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return torch.from_numpy(cached_array(name, shape, decoded))


def _class_of(name: str) -> str:
    return name.split("/", maxsplit=1)[0]


def _file_names(path: Path) -> list[str]:
    if path.is_dir():
        return [file.relative_to(path).as_posix() for file in _files_below(path)]
    if zipfile.is_zipfile(path):
        with open_zip(path) as archive:
            return archive.namelist()
    if path.is_file():
        read_file(path)  # is it another user's?
    problem = "is no folder and no zip" if path.exists() else "no such folder or zip"
    raise DataError(f"{path}: {problem}")


def _files_below(path: Path) -> Iterator[Path]:
    """Yield every file below a folder.

    Raises:
        DataError: a folder cannot be read. Its images would be missing.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(error.filename, error)

    for folder, _, names in os.walk(path, onerror=refuse):
        for name in names:
            file = Path(folder) / name
            if file.is_file():
                yield file


def _file_versions(tree: ImageTree) -> Iterator[str]:
    """Yield each file's name with a value that changes when the file does."""
    if tree.path.is_dir():
        for name in tree.files:
            stat = (tree.path / tree.path_of(name)).stat()
            yield f"{name} {stat.st_size} {stat.st_mtime_ns}"
        return
    with open_zip(tree.path) as archive:
        members = [archive.getinfo(tree.path_of(name)) for name in tree.files]
    check_members(tree.path, members)
    for name, member in zip(tree.files, members, strict=True):
        yield f"{name} {member.CRC}"


def _open_images(tree: ImageTree, size: int) -> Iterator[Image.Image]:
    if tree.path.is_dir():
        for name in tree.files:
            file = tree.path / tree.path_of(name)
            yield _open_image(read_file(file), str(file), size)
        return
    with open_zip(tree.path) as archive:
        for name in tree.files:
            member = tree.path_of(name)
            yield _open_image(read_member(archive, member), f"{tree.path}: {member}", size)


def read_file(file: Path) -> bytes:
    """Return the content of a file, or raise DataError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(path: Path | str, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({reason(error)}); let this user read it, or give other data")


def _open_image(data: bytes, name: str, size: int) -> Image.Image:
    """Return an image, decoded, that can be resized to ``size``."""
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
        image = opened.convert("RGB")
    except Exception as error:  # noqa: BLE001 - each decoder reports damage in its own way
        raise DataError(
            f"{name}: is no readable image ({reason(error)}); remove it or put a whole one in its place"
        ) from None
    width, height = _resized(image, size)
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: is {image.width} x {image.height} pixels, and {width} x {height} with its shorter side "
            f"at {size}; allowed: {MAX_PIXELS:,} pixels; crop it, or remove it"
        )
    return image


def _resized(image: Image.Image, size: int) -> tuple[int, int]:
    """Return width and height with the shorter side at ``size``."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return width, height


def _resize_and_crop(image: Image.Image, size: int) -> Pixels:
    """Return pixels of shape (3, size, size): the shorter side resized to ``size``, the centre cropped."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (size, size):
        width, height = _resized(image, size)
        left = (width - size) // 2
        top = (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        image = resized.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)
