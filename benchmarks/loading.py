"""The data sets of torchvision and Avalanche, read by their own loaders, as images in memory.

They are looked for in a data root, and downloaded there on first use. A root that cannot be
written works too: archives in it are unpacked in the cache.
"""

import contextlib
import importlib
import io
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mas.benchmarks.cache import cache_folder, whole_file, writing_to_cache
from mas.benchmarks.errors import DataError, reason
from mas.benchmarks.folders import decode_images
from mas.benchmarks.images import Images, Pair

AVALANCHE = "avalanche.benchmarks.datasets"

LoaderOptions = Mapping[str, str | bool]


class LabelledImages(Protocol):
    """A data set of torchvision or Avalanche: (image, label) pairs, and attributes that differ from one to another."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """Return an image and its label."""

    def __getattr__(self, name: str, /) -> Any:
        """Return an attribute, such as ``targets``."""


def data_root() -> Path:
    """Return the folder where data sets are looked for: ``MAS_DATA``, or ``data`` in the cache."""
    folder = os.environ.get("MAS_DATA") or cache_folder() / "data"
    return Path(folder).expanduser()


def set_data_root(folder: Path | str) -> None:
    """Look for data sets in ``folder`` from now on, in this process and its child processes."""
    os.environ["MAS_DATA"] = str(Path(folder).expanduser().absolute())


def read_arrays(kind: str, train: LoaderOptions, *, test: LoaderOptions, first_label: int = 0) -> Pair:
    """Read both parts of a torchvision data set that is held in memory as one array.

    Args:
        kind: name of the class in ``torchvision.datasets``.
        train: options of the training part.
        test: options of the test part.
        first_label: the lowest label in the data set.
    """
    return _read_array(kind, train, first_label), _read_array(kind, test, first_label)


def _read_array(kind: str, options: LoaderOptions, first_label: int) -> Images:
    data = open_dataset(kind, options)
    labels = getattr(data, "targets", getattr(data, "labels", None))
    from_zero = torch.as_tensor(np.asarray(labels)).long() - first_label
    return Images(_channels_first(torch.as_tensor(data.data)), from_zero)


def _channels_first(pixels: Tensor) -> Tensor:
    """Return pixels of shape (N, H, W), (N, H, W, 3) or (N, 3, H, W) as (N, C, H, W)."""
    if pixels.ndim == 3:
        return pixels[:, None]
    return pixels if pixels.shape[1] == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def open_dataset(kind: str, options: LoaderOptions, *, module: str = "torchvision.datasets") -> LabelledImages:
    """Open a data set by its library's loader, and download what is missing.

    From a root that cannot be written, archives are first copied to the cache and unpacked there.

    Raises:
        DataError: the data are not there and cannot be downloaded.
    """
    loader = getattr(importlib.import_module(module), kind)
    root = data_root()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return loader(root, **options, download=False)
    except Exception as first:  # noqa: BLE001 - each loader reports missing data in its own way
        home = root if _writable(root) else _copy_archives(root, kind)
        try:
            return loader(home, **options, download=True)
        except Exception as error:  # noqa: BLE001 - no network, a broken archive, ...
            raise DataError(
                f"{kind}: not found or not whole in {root} ({reason(first)}), and downloading it failed "
                f"({reason(error)}); put it there as torchvision or Avalanche lays it out, set MAS_DATA or --data to "
                "where it is, or run once with a network"
            ) from None


def _writable(folder: Path) -> bool:
    """Return whether a folder can be written, or created."""
    while not folder.exists():
        folder = folder.parent
    owner_may_write = folder.stat().st_mode & stat.S_IWUSR  # root passes os.access for any folder
    return os.access(folder, os.W_OK) and bool(owner_may_write)


def _copy_archives(root: Path, kind: str) -> Path:
    """Copy the files of a data set from ``root`` to the cache, and return the folder there.

    Raises:
        DataError: the cache cannot be written; no part of a file stays.
    """
    home = cache_folder() / "data"
    source = root / kind
    with writing_to_cache():
        for file in source.rglob("*") if source.exists() else ():
            copy = home / file.relative_to(root)
            if file.is_file() and not copy.exists():
                with file.open("rb") as content, whole_file(copy) as part:
                    shutil.copyfileobj(content, part)
        home.mkdir(parents=True, exist_ok=True)
    return home


def read_files(train: Sequence[LabelledImages], test: LabelledImages, *, size: int) -> Pair:
    """Read data sets of image files.

    Args:
        train: the training part, in one or more data sets.
        test: the test part.
        size: images are resized to this many pixels on their shorter side, and the centre is cropped.
    """
    title = type(test).__name__
    return _read_parts(train, size, title), _read_parts([test], size, title)


def _read_parts(parts: Sequence[LabelledImages], size: int, title: str) -> Images:
    pixels = [pixels_of(part, size, title=title) for part in parts]
    labels = [_labels_of(part) for part in parts]
    return Images(torch.cat(pixels), torch.cat(labels))


def pixels_of(data: LabelledImages, size: int, *, title: str) -> Tensor:
    """Decode the images of a data set, shape (N, 3, size, size), uint8."""
    part = getattr(data, "_split", getattr(data, "train", ""))
    key = f"{title} {data_root().resolve()} {size} {len(data)} {part}"

    def images() -> Iterator[Image.Image]:
        for i in range(len(data)):
            yield _image_of(data, i, title)

    return decode_images(images, key, count=len(data), size=size, title=title)


def _image_of(data: LabelledImages, index: int, title: str) -> Image.Image:
    try:
        image, _ = data[index]
        image.load()
    except Exception as error:  # noqa: BLE001 - each decoder reports damage in its own way
        raise DataError(
            f"{title}: image {index} cannot be read ({reason(error)}); put the data set there again, or fetch it again"
        ) from None
    return image


def _labels_of(data: LabelledImages) -> Tensor:
    """Return the labels of a data set without decoding its images."""
    for name in ("targets", "_labels", "labels"):
        labels = getattr(data, name, None)
        if labels is not None:
            return torch.as_tensor(labels).long()
    return torch.tensor([label for _, label in data._samples])
