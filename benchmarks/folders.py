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
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.progress import track
from torch import Tensor

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif"}


class DataError(ValueError):
    """Data are missing or broken: what, where it was looked for, and how to mend it, in one line."""


@dataclass(frozen=True)
class Tree:
    """The image files of a folder or zip, as ``<class>/.../<file>``, in the order of their names.

    Attributes:
        path: of the folder or zip.
        inside: the folder in it whose folders are the classes; "" for its top.
        files: names below ``inside``.
    """

    path: Path
    inside: str
    files: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted: a class's place is its label."""
        return sorted({name.split("/")[0] for name in self.files})

    @property
    def labels(self) -> Tensor:
        """Shape (files,), int64."""
        place = {name: i for i, name in enumerate(self.classes)}
        return torch.tensor([place[name.split("/")[0]] for name in self.files])

    def only(self, files: Sequence[str]) -> "Tree":
        """Give some of the files."""
        return Tree(self.path, self.inside, tuple(files))


def find_tree(path: Path, *inside: str) -> Tree | None:
    """Give the images below the first of some folders inside ``path`` that holds any; None if none does."""
    names = _names(path)
    for folder in inside:
        start = f"{folder}/" if folder else ""
        below = sorted(n.removeprefix(start) for n in names if n.startswith(start))
        files = [n for n in below if "/" in n and Path(n).suffix.lower() in SUFFIXES]
        if files:
            return Tree(path, folder, tuple(files))
    return None


def read_images(tree: Tree, size: int) -> Tensor:
    """Give the pixels of a tree, shape (files, 3, size, size), uint8: the shorter side resized, the middle cut out.

    Raises:
        DataError: a file is no image.
    """
    state = "\n".join([str(tree.path.resolve()), tree.inside, str(size), *_states(tree)])
    return decoded(state, len(tree.files), size, lambda: _opened(tree), tree.path.name)


def decoded(key: str, count: int, size: int, images: Callable[[], Iterator[Image.Image]], title: str) -> Tensor:
    """Give pixels of images, shape (count, 3, size, size), uint8, from the cache if it has them.

    Args:
        key: changes whenever the images do.
        count: of the images.
        size: of their sides.
        images: gives them, one after another.
        title: what the progress bar says.
    """
    file = cache_folder() / "decoded" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    if not file.exists():
        pixels = np.empty((count, 3, size, size), np.uint8)
        for i, image in enumerate(track(images(), f"reading {title}", total=count, transient=True)):
            pixels[i] = _square(image, size)
        _save(file, pixels)
    return torch.from_numpy(np.load(file, mmap_mode="c"))  # copy on write: the file stays as it is


def cache_folder() -> Path:
    """Give the folder for what can be made anew: ``MAS_CACHE``, or ``mas`` in the user's cache."""
    base = os.environ.get("MAS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mas"
    return Path(base).expanduser()


def _names(path: Path) -> list[str]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    if path.is_dir():
        return [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
    raise DataError(f"{path}: {'is no folder and no zip' if path.exists() else 'no such folder or zip'}")


def _states(tree: Tree) -> Iterator[str]:
    """Tell each file's name with what changes when it does."""
    if tree.path.is_dir():
        for name in tree.files:
            stat = (tree.path / tree.inside / name).stat()
            yield f"{name} {stat.st_size} {stat.st_mtime_ns}"
        return
    with zipfile.ZipFile(tree.path) as archive:
        for name in tree.files:
            yield f"{name} {archive.getinfo(_inside(tree, name)).CRC}"


def _inside(tree: Tree, name: str) -> str:
    return f"{tree.inside}/{name}" if tree.inside else name


def _opened(tree: Tree) -> Iterator[Image.Image]:
    if tree.path.is_dir():
        for name in tree.files:
            file = tree.path / tree.inside / name
            yield _image(file.read_bytes(), str(file))
        return
    with closing(zipfile.ZipFile(tree.path)) as archive:
        for name in tree.files:
            yield _image(_unpacked(archive, _inside(tree, name)), f"{tree.path}: {_inside(tree, name)}")


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, OSError, zlib.error) as error:
        raise DataError(f"{archive.filename}: is damaged at {name} ({error}); fetch it again") from None


def _image(data: bytes, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: is no readable image ({error}); remove it or put a whole one in its place") from None
    return image


def _square(image: Image.Image, size: int) -> Any:
    """Give (3, size, size): the shorter side resized to ``size``, the middle cut out."""
    image = image.convert("RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        wide, high = (max(size, round(side * scale)) for side in image.size)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


def _save(file: Path, pixels: Any) -> None:
    """Write whole or not at all: several processes may do it at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as part:
        np.save(part, pixels)
    Path(part.name).replace(file)
