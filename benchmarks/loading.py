"""The data sets that torchvision and Avalanche know, by their own loaders, as images in memory.

They are looked for in a data root, and downloaded there on first use. A root that cannot be
written works too: archives in it are unpacked in the cache.
"""

import contextlib
import importlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mas.benchmarks.folders import DataError, cache_folder, decoded
from mas.benchmarks.images import Images, Pair

AVALANCHE = "avalanche.benchmarks.datasets"


def data_root() -> Path:
    """Give the folder where data sets are looked for: ``MAS_DATA``, or ``data`` in the cache."""
    return Path(os.environ.get("MAS_DATA") or cache_folder() / "data").expanduser()


def set_data_root(folder: Path | str) -> None:
    """Look for data sets in ``folder`` from now on, in this process and those it starts."""
    os.environ["MAS_DATA"] = str(Path(folder).expanduser().absolute())


def both(kind: str, train: dict[str, Any], test: dict[str, Any], first_label: int = 0) -> Pair:
    """Load both parts of a data set that torchvision holds in memory."""
    parts = []
    for options in (train, test):
        data = open_dataset(kind, options)
        labels = torch.as_tensor(np.asarray(getattr(data, "targets", getattr(data, "labels", None)))).long()
        parts.append(Images(_channels_first(torch.as_tensor(data.data)), labels - first_label))
    return parts[0], parts[1]


def _channels_first(pixels: Tensor) -> Tensor:
    """Give (N, C, H, W) of (N, H, W), (N, H, W, 3) or (N, 3, H, W)."""
    if pixels.ndim == 3:
        return pixels[:, None]
    return pixels if pixels.shape[1] == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def open_dataset(kind: str, options: dict[str, Any], module: str = "torchvision.datasets") -> Any:
    """Open a data set by its library's own loader, downloading what is missing.

    From a root that cannot be written, archives are first copied to the cache, to be unpacked there.
    """
    loader, root = getattr(importlib.import_module(module), kind), data_root()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return loader(root, **options, download=False)
    except Exception as first:  # noqa: BLE001 - each loader has its own way to say that nothing is there
        home = root if _writable(root) else _with_archives(root, kind)
        try:
            return loader(home, **options, download=True)
        except Exception as error:  # noqa: BLE001 - no network, a broken archive, ...
            raise DataError(
                f"{kind}: not found or not whole in {root} ({_short(first)}), and downloading it failed "
                f"({_short(error)}); put it there as torchvision or Avalanche lays it out, set MAS_DATA or --data to "
                "where it is, or run once with a network"
            ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _writable(folder: Path) -> bool:
    """Tell whether a folder can be written, or made."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & stat.S_IWUSR)  # root may write anything


def _with_archives(root: Path, kind: str) -> Path:
    """Copy what lies in ``root`` for a data set to the cache."""
    home = cache_folder() / "data"
    for file in (root / kind).rglob("*") if (root / kind).exists() else ():
        copy = home / file.relative_to(root)
        if file.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    home.mkdir(parents=True, exist_ok=True)
    return home


def of_files(*train: Any, test: Any, size: int) -> Pair:
    """Give a data set of image files in memory."""
    title = type(test).__name__
    both = [
        Images(torch.cat([pixels_of(part, size, title) for part in parts]), torch.cat([_labels(p) for p in parts]))
        for parts in (train, (test,))
    ]
    return both[0], both[1]


def pixels_of(data: Any, size: int, title: str) -> Tensor:
    """Decode a data set that gives (image, label) pairs."""
    key = f"{title} {data_root().resolve()} {size} {len(data)} {getattr(data, '_split', getattr(data, 'train', ''))}"

    def images() -> Iterator[Image.Image]:
        for i in range(len(data)):
            yield data[i][0]

    return decoded(key, len(data), size, images, title)


def _labels(data: Any) -> Tensor:
    """Find the labels of a data set without decoding its images."""
    for name in ("targets", "_labels", "labels"):
        if getattr(data, name, None) is not None:
            return torch.as_tensor(getattr(data, name)).long()
    return torch.tensor([label for _, label in data._samples])
