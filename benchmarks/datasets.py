"""Data sets by name, each a pair (train, test) of labelled images in memory.

Their files are looked for in a data root, and downloaded there on first use (`mas.benchmarks.loading`).
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from pydantic import ConfigDict, ValidationError, validate_call
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mas.annotations import Count, OpenFraction
from mas.benchmarks.errors import DataError
from mas.benchmarks.folders import ImageTree, find_tree, read_images
from mas.benchmarks.images import Images, Pair
from mas.benchmarks.loading import AVALANCHE, LoaderOptions, data_root, open_dataset, pixels_of, read_arrays, read_files
from mas.imports import IMPORT, check_options, import_function

DatasetSpec = str | dict[str, Any]
"""A data set's name, or a map with ``name`` and its options."""


def digits(train: Count | None = None, test: Count = 360, *, writers: Literal["mixed", "apart"] = "mixed") -> Pair:
    """Handwritten digits, 8x8 grey, 10 classes, 1,437 train and 360 test images (comes with scikit-learn).

    scikit-learn has no standard split of them; the split here is fixed and the same for every seed. Images
    have shape (1, 8, 8) and values from 0 to 1.

    Args:
        train, test: numbers of images, 1,797 in all; by default ``train`` is the rest.
        writers: "mixed" divides each class at random. "apart" trains on the first and tests on
            the last images of the file, which other people wrote: a harder test.
    """
    values, labels = load_digits(return_X_y=True)
    # 1797 images of 8x8 with grey values from 0 to 16
    x = torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    every = Images(x, torch.tensor(labels, dtype=torch.int64))
    train = len(x) - test if train is None else train
    if not 0 < train <= len(x) - test:
        raise ValueError(f"digits: train is {train} and test {test}; there are {len(x)} images")
    if writers == "apart":
        first = torch.arange(train)
        last = torch.arange(len(x) - test, len(x))
        return every.subset(first), every.subset(last)
    rest, test_images = hold_out(every, test, name="test")
    if train == len(rest):
        return rest, test_images
    _, train_images = hold_out(rest, train, name="train")
    return train_images, test_images


def mnist() -> Pair:
    """MNIST: handwritten digits, 28x28 grey, 10 classes, 60,000 / 10,000 images (LeCun 1998)."""
    return read_arrays("MNIST", {"train": True}, test={"train": False})


def fashion_mnist() -> Pair:
    """Fashion-MNIST: articles of clothing, 28x28 grey, 10 classes, 60,000 / 10,000 images (Xiao 2017)."""
    return read_arrays("FashionMNIST", {"train": True}, test={"train": False})


def kmnist() -> Pair:
    """KMNIST: cursive Japanese characters, 28x28 grey, 10 classes, 60,000 / 10,000 images (Clanuwat 2018)."""
    return read_arrays("KMNIST", {"train": True}, test={"train": False})


def emnist_letters() -> Pair:
    """EMNIST letters: handwritten letters, 28x28 grey, 26 classes, 124,800 / 20,800 images (Cohen 2017)."""
    train: LoaderOptions = {"split": "letters", "train": True}
    test: LoaderOptions = {"split": "letters", "train": False}
    return read_arrays("EMNIST", train, test=test, first_label=1)


def usps() -> Pair:
    """USPS: handwritten digits, 16x16 grey, 10 classes, 7,291 / 2,007 images (Hull 1994)."""
    return read_arrays("USPS", {"train": True}, test={"train": False})


def cifar10() -> Pair:
    """CIFAR-10: objects and animals, 32x32 colour, 10 classes, 50,000 / 10,000 images (Krizhevsky 2009)."""
    return read_arrays("CIFAR10", {"train": True}, test={"train": False})


def cifar100() -> Pair:
    """CIFAR-100: objects and animals, 32x32 colour, 100 classes, 50,000 / 10,000 images (Krizhevsky 2009)."""
    return read_arrays("CIFAR100", {"train": True}, test={"train": False})


def svhn() -> Pair:
    """SVHN: house numbers, 32x32 colour, 10 classes, 73,257 / 26,032 images (Netzer 2011)."""
    return read_arrays("SVHN", {"split": "train"}, test={"split": "test"})


def omniglot() -> Pair:
    """Omniglot: handwritten characters, 28x28 grey, 1,623 classes, 15 / 5 images of each (Lake 2015)."""
    background = open_dataset("Omniglot", {"background": True})
    evaluation = open_dataset("Omniglot", {"background": False})
    pixels = [pixels_of(part, 28, title="Omniglot") for part in (background, evaluation)]
    x = torch.cat([255 - grey[:, :1] for grey in pixels])
    index = torch.arange(len(x))
    y = index // 20  # 20 drawings of each character, one after another
    test = index % 20 >= 15
    return Images(x[~test], y[~test]), Images(x[test], y[test])


def flowers102(size: Count = 224) -> Pair:
    """Flowers-102: flowers in the wild, colour, 102 classes, 2,040 / 6,149 images (Nilsback 2008)."""
    train = open_dataset("Flowers102", {"split": "train"})
    validation = open_dataset("Flowers102", {"split": "val"})
    test = open_dataset("Flowers102", {"split": "test"})
    return read_files([train, validation], test, size=size)


def stanford_cars(size: Count = 224) -> Pair:
    """Stanford Cars: models of cars, colour, 196 classes, 8,144 / 8,041 images (Krause 2013)."""
    train = open_dataset("StanfordCars", {"split": "train"})
    test = open_dataset("StanfordCars", {"split": "test"})
    return read_files([train], test, size=size)


def fgvc_aircraft(size: Count = 224) -> Pair:
    """FGVC-Aircraft: variants of aircraft, colour, 100 classes, 6,667 / 3,333 images (Maji 2013)."""
    train = open_dataset("FGVCAircraft", {"split": "trainval"})
    test = open_dataset("FGVCAircraft", {"split": "test"})
    return read_files([train], test, size=size)


def cub200(size: Count = 224) -> Pair:
    """CUB-200-2011: birds, colour, 200 classes, 5,994 / 5,794 images (Wah 2011)."""
    train = open_dataset("CUB200", {"train": True}, module=AVALANCHE)
    test = open_dataset("CUB200", {"train": False}, module=AVALANCHE)
    return read_files([train], test, size=size)


def core50(size: Count = 32) -> Pair:
    """CORe50: objects held in a hand, colour, 50 classes, 119,894 / 44,972 images (Lomonaco 2017)."""
    train = open_dataset("CORe50Dataset", {"train": True, "mini": True}, module=AVALANCHE)
    test = open_dataset("CORe50Dataset", {"train": False, "mini": True}, module=AVALANCHE)
    return read_files([train], test, size=size)


def tiny_imagenet(size: Count = 64) -> Pair:
    """Tiny-ImageNet: objects and animals, 64x64 colour, 200 classes, 100,000 / 10,000 images (Le and Yang 2015)."""
    train = open_dataset("TinyImagenet", {"train": True}, module=AVALANCHE)
    test = open_dataset("TinyImagenet", {"train": False}, module=AVALANCHE)
    return read_files([train], test, size=size)


def image_folder(
    path: str,
    test: str | None = None,
    *,
    split_file: str | None = None,
    test_share: OpenFraction = 0.2,
    size: Count = 64,
) -> Pair:
    """Your own images: a folder or zip with a folder for each class, or train and test (val) folders of them.

    Args:
        path: of the folder or zip, relative to the data root unless absolute. Train and test folders may
            lie in a folder of the zip's own name.
        test: the same for the test images, if they are stored apart.
        split_file: a text file with lines ``<class>/<file> train`` or ``<class>/<file> test``; used if
            neither folders nor ``test`` separate the test images.
        test_share: share of each class to test on, always the same images; used if nothing else
            separates the test images.
        size: images are resized to this many pixels on their shorter side, and the centre is cropped.

    Raises:
        DataError: nothing there, no images, a broken one, or other classes in test than in train.
    """
    root = _resolve(path)
    train_tree, test_tree = _find_trees(root, test, split_file)
    if test_tree is None:
        return hold_out(_read_tree(train_tree, size), test_share, name="test_share")
    _check_same_classes(root, train_tree.classes, test_tree.classes)
    return _read_tree(train_tree, size), _read_tree(test_tree, size)


DATASETS: dict[str, Callable[..., Pair]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "kmnist": kmnist,
    "emnist_letters": emnist_letters,
    "usps": usps,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "tiny_imagenet": tiny_imagenet,
    "cub200": cub200,
    "flowers102": flowers102,
    "stanford_cars": stanford_cars,
    "fgvc_aircraft": fgvc_aircraft,
    "omniglot": omniglot,
    "core50": core50,
    "image_folder": image_folder,
}
"""Name in YAML -> function that returns (train, test). Its docstring's first line describes it."""

Arguments = tuple[tuple[str, Any], ...]  # names and values, sorted: they can be hashed


def load_dataset(spec: DatasetSpec) -> Pair:
    """Return (train, test) of a data set by its name, or by a map with ``name`` and its options.

    Raises:
        ValueError: an unknown name or option.
        DataError: the data are not there or broken.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if name == IMPORT:
        return _imported(**options)
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"dataset is {name!r}; known are {', '.join(DATASETS)}")
    _check_dataset_options(name, options)
    try:
        return _load(name, tuple(sorted(options.items())), data_root())
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"dataset {name}: {first['loc'][0]} is {first['input']!r}; {first['msg']}") from None


def _check_dataset_options(name: str, options: Mapping[str, Any]) -> None:
    known = list(inspect.signature(DATASETS[name]).parameters)
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"dataset {name} has no option {key!r}; it has: {', '.join(known) or 'none'}")
        if isinstance(value, list | dict):
            raise ValueError(f"dataset {name}: {key} is {value!r}; give text or a number")


def fingerprint(spec: DatasetSpec) -> str:
    """Return a hash of all labels and images of a data set, as they are used.

    The first 16 digits are of all labels and of up to a thousand images, evenly spaced over the data set: until
    0.1.0 these were all, so that runs of then can be continued. The other 32 are of every image.
    """
    train, test = load_dataset(spec)
    sampled = hashlib.sha256()
    for part in (train, test):
        few = torch.linspace(0, len(part) - 1, min(len(part), 1000)).long()
        sampled.update(part.labels.numpy().tobytes())
        sampled.update(part.pixels[part.rows[few]].numpy().tobytes())
    whole = hashlib.sha256((_digest(train) + _digest(test)).encode())
    return sampled.hexdigest()[:16] + whole.hexdigest()[:32]


_DIGESTS: WeakKeyDictionary[Images, str] = WeakKeyDictionary()  # images do not change: each is read once


def _digest(images: Images) -> str:
    """Return the SHA-256 of the shape, labels and pixels of images, in their order."""
    if images not in _DIGESTS:
        digest = hashlib.sha256(f"{images.pixels.dtype} {tuple(images.pixels.shape[1:])} {len(images)}".encode())
        digest.update(images.labels.numpy().tobytes())
        for rows in images.rows.split(4096):
            digest.update(images.pixels[rows].numpy().tobytes())
        _DIGESTS[images] = digest.hexdigest()
    return _DIGESTS[images]


def hold_out(images: Images, share: float, *, name: str = "validation", seed: int = 0) -> Pair:
    """Divide labelled data into (kept, held out), class by class.

    Args:
        images: to divide.
        share: to hold out, from 0 to 1; an int is a number of images.
        name: of the option that ``share`` comes from, for messages.
        seed: of the division.
    """
    labels = images.labels
    size = len(labels)
    _, counts = labels.unique(return_counts=True)
    if int(counts.min()) < 2:
        raise ValueError(f"{name} needs two images of each class; a class has one")
    least: float = len(counts)  # one image of each class on both sides
    whole = size
    form = "d"
    if not isinstance(share, int):
        least = least / size
        whole = 1
        form = ".3f"
    if not least <= share <= whole - least:
        raise ValueError(f"{name} is {share}; {size} images need {least:{form}} to {whole - least:{form}}")
    kept, held = train_test_split(range(size), test_size=share, stratify=labels.numpy(), random_state=seed % 2**32)
    return images.subset(torch.tensor(kept)), images.subset(torch.tensor(held))


def _imported(function: Any = None, **options: Any) -> Pair:
    """Return the (train, test) of a function of the user's own."""
    if not isinstance(function, str):
        raise ValueError(f"dataset import: function is {function!r}; give package.module:name")
    check_options(import_function(function), options, (), function)
    return _load_imported(function, tuple(sorted(options.items())))


@cache
def _load_imported(function: str, options: Arguments) -> Pair:
    found = import_function(function)(**dict(options))
    is_pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Images) for part in found)
    if not is_pair:
        raise ValueError(f"{function} returned {type(found).__name__}; expected (train, test) of mas.benchmarks.Images")
    return found


@cache
def _load(name: str, options: Arguments, root: Path) -> Pair:  # root: the cached data belong to it
    checked = validate_call(config=ConfigDict(strict=True))(DATASETS[name])
    return checked(**dict(options))


_TEST_FOLDERS = ("test", "val", "valid")


def _read_tree(tree: ImageTree, size: int) -> Images:
    return Images(read_images(tree, size), tree.labels, class_names=tuple(tree.classes))


def _check_same_classes(root: Path, train: list[str], test: list[str]) -> None:
    different = set(train) ^ set(test)
    if different:
        raise DataError(
            f"{root}: {len(train)} classes in train and {len(test)} in test; {min(different)!r} is in only one of them"
        )


def _resolve(path: str) -> Path:
    """Return a path that is absolute, or relative to the data root."""
    found = data_root() / Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{path}: not in {data_root()}; give another path, or set MAS_DATA or --data")
    return found


def _find_trees(root: Path, test: str | None, split_file: str | None) -> tuple[ImageTree, ImageTree | None]:
    """Return the training and the test images; None in place of test images that are not separate."""
    if split_file:
        return _divide(_find_tree(root, ""), _resolve(split_file))
    if test:
        return _find_tree(root, "train", ""), _find_tree(_resolve(test), *_TEST_FOLDERS, "")
    for outer in ("", f"{root.stem}/"):  # a zip may hold all in a folder of its own name
        test_folders = [f"{outer}{name}" for name in _TEST_FOLDERS]
        test_tree = find_tree(root, *test_folders)
        if test_tree is not None:
            return _find_tree(root, f"{outer}train"), test_tree
    return _find_tree(root, "train", ""), None


def _find_tree(root: Path, *inside: str) -> ImageTree:
    tree = find_tree(root, *inside)
    if tree is None:
        raise DataError(f"{root}: holds no images as <class>/<file>, also not in a folder called train")
    return tree


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no text file ({error}); each line is <class>/<file> train, or ... test") from None


def _divide(tree: ImageTree, split_file: Path) -> tuple[ImageTree, ImageTree]:
    """Return the training and the test images that a split file lists."""
    parts: dict[str, list[str]] = {"train": [], "test": []}
    files = set(tree.files)
    for number, line in enumerate(_read_text(split_file).splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        name, _, part = text.rpartition(" ")
        if part not in parts or name not in files:
            raise DataError(f"{split_file}:{number}: found {text!r}; each line is <class>/<file> train, or ... test")
        parts[part].append(name)
    return tree.subset(sorted(parts["train"])), tree.subset(sorted(parts["test"]))
