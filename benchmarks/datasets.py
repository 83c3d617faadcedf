"""Data sets by name, each a pair (train, test) of labelled images in memory.

They are looked for in a data root, and downloaded there on first use (`mas.benchmarks.loading`).
"""

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, ValidationError, validate_call
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mas.annotations import Count, OpenFraction
from mas.benchmarks.folders import DataError, Tree, find_tree, read_images
from mas.benchmarks.images import Images, Pair
from mas.benchmarks.loading import AVALANCHE, both, data_root, of_files, open_dataset, pixels_of
from mas.imports import IMPORT, check_options, import_function


def digits(train: Count | None = None, test: Count = 360, writers: Literal["mixed", "apart"] = "mixed") -> Pair:
    """Handwritten digits, 8x8 grey, 10 classes, 1,437 train and 360 test images (comes with scikit-learn).

    scikit-learn gives no split of its own; the one here is fixed and the same for every seed. Images
    have shape (1, 8, 8) and values from 0 to 1.

    Args:
        train, test: numbers of images, 1,797 in all; by default ``train`` is the rest.
        writers: "mixed" divides them class by class, by lot. "apart" trains on the first and tests on
            the last of the file, which other people wrote: a harder test.
    """
    images, labels = load_digits(return_X_y=True)
    # 1797 images of 8x8 with grey values from 0 to 16
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    every = Images(x, torch.tensor(labels, dtype=torch.int64))
    train = len(x) - test if train is None else train
    if not 0 < train <= len(x) - test:
        raise ValueError(f"digits: train is {train} and test {test}; there are {len(x)} images")
    if writers == "apart":
        return every.subset(torch.arange(train)), every.subset(torch.arange(len(x) - test, len(x)))
    rest, held = hold_out(every, test, "test")
    return (rest if train == len(rest) else hold_out(rest, train, "train")[1]), held


def mnist() -> Pair:
    """MNIST: handwritten digits, 28x28 grey, 10 classes, 60,000 / 10,000 images (LeCun 1998)."""
    return both("MNIST", {"train": True}, {"train": False})


def fashion_mnist() -> Pair:
    """Fashion-MNIST: articles of clothing, 28x28 grey, 10 classes, 60,000 / 10,000 images (Xiao 2017)."""
    return both("FashionMNIST", {"train": True}, {"train": False})


def kmnist() -> Pair:
    """KMNIST: cursive Japanese characters, 28x28 grey, 10 classes, 60,000 / 10,000 images (Clanuwat 2018)."""
    return both("KMNIST", {"train": True}, {"train": False})


def emnist_letters() -> Pair:
    """EMNIST letters: handwritten letters, 28x28 grey, 26 classes, 124,800 / 20,800 images (Cohen 2017)."""
    return both("EMNIST", {"split": "letters", "train": True}, {"split": "letters", "train": False}, first_label=1)


def usps() -> Pair:
    """USPS: handwritten digits, 16x16 grey, 10 classes, 7,291 / 2,007 images (Hull 1994)."""
    return both("USPS", {"train": True}, {"train": False})


def cifar10() -> Pair:
    """CIFAR-10: objects and animals, 32x32 colour, 10 classes, 50,000 / 10,000 images (Krizhevsky 2009)."""
    return both("CIFAR10", {"train": True}, {"train": False})


def cifar100() -> Pair:
    """CIFAR-100: objects and animals, 32x32 colour, 100 classes, 50,000 / 10,000 images (Krizhevsky 2009)."""
    return both("CIFAR100", {"train": True}, {"train": False})


def svhn() -> Pair:
    """SVHN: house numbers, 32x32 colour, 10 classes, 73,257 / 26,032 images (Netzer 2011)."""
    return both("SVHN", {"split": "train"}, {"split": "test"})


def omniglot() -> Pair:
    """Omniglot: handwritten characters, 28x28 grey, 1,623 classes, 15 / 5 images of each (Lake 2015)."""
    parts = [open_dataset("Omniglot", {"background": True}), open_dataset("Omniglot", {"background": False})]
    x = torch.cat([255 - pixels_of(part, 28, "Omniglot")[:, :1] for part in parts])
    y = torch.arange(len(x)) // 20  # 20 drawings of each character, one after another
    test = torch.arange(len(x)) % 20 >= 15
    return Images(x[~test], y[~test]), Images(x[test], y[test])


def flowers102(size: Count = 224) -> Pair:
    """Flowers-102: flowers in the wild, colour, 102 classes, 2,040 / 6,149 images (Nilsback 2008)."""
    train, more = (open_dataset("Flowers102", {"split": part}) for part in ("train", "val"))
    return of_files(train, more, test=open_dataset("Flowers102", {"split": "test"}), size=size)


def stanford_cars(size: Count = 224) -> Pair:
    """Stanford Cars: models of cars, colour, 196 classes, 8,144 / 8,041 images (Krause 2013)."""
    return of_files(
        open_dataset("StanfordCars", {"split": "train"}),
        test=open_dataset("StanfordCars", {"split": "test"}),
        size=size,
    )


def fgvc_aircraft(size: Count = 224) -> Pair:
    """FGVC-Aircraft: variants of aircraft, colour, 100 classes, 6,667 / 3,333 images (Maji 2013)."""
    train, test = (open_dataset("FGVCAircraft", {"split": part}) for part in ("trainval", "test"))
    return of_files(train, test=test, size=size)


def cub200(size: Count = 224) -> Pair:
    """CUB-200-2011: birds, colour, 200 classes, 5,994 / 5,794 images (Wah 2011)."""
    train, test = (open_dataset("CUB200", {"train": part}, AVALANCHE) for part in (True, False))
    return of_files(train, test=test, size=size)


def core50(size: Count = 32) -> Pair:
    """CORe50: objects held in a hand, colour, 50 classes, 119,894 / 44,972 images (Lomonaco 2017)."""
    train, test = (open_dataset("CORe50Dataset", {"train": part, "mini": True}, AVALANCHE) for part in (True, False))
    return of_files(train, test=test, size=size)


def tiny_imagenet(size: Count = 64) -> Pair:
    """Tiny-ImageNet: objects and animals, 64x64 colour, 200 classes, 100,000 / 10,000 images (Le and Yang 2015)."""
    train, test = (open_dataset("TinyImagenet", {"train": part}, AVALANCHE) for part in (True, False))
    return of_files(train, test=test, size=size)


def image_folder(
    path: str,
    test: str | None = None,
    split_file: str | None = None,
    test_share: OpenFraction = 0.2,
    size: Count = 64,
) -> Pair:
    """Your own images: a folder or zip with a folder for each class, or train and test (val) folders of them.

    Args:
        path: of the folder or zip, from the data root unless absolute.
        test: the same for the test images, where they lie apart.
        split_file: a text file with ``<class>/<file> train`` or ``... test`` in each line, where
            neither folders nor ``test`` tell.
        test_share: where nothing tells, this share of each class is drawn, the same each time.
        size: images are resized to this many pixels on their shorter side, the middle cut out.

    Raises:
        DataError: nothing there, no images, a broken one, or other classes in test than in train.
    """
    here = _found(path)
    tree, held_out = _trees(here, test, split_file)
    if held_out is None:
        return hold_out(Images(read_images(tree, size), tree.labels), test_share, "test_share")
    if odd := set(tree.classes) ^ set(held_out.classes):
        raise DataError(
            f"{here}: {len(tree.classes)} classes in train and {len(held_out.classes)} in test; "
            f"{min(odd)!r} is in only one of them"
        )
    return Images(read_images(tree, size), tree.labels), Images(read_images(held_out, size), held_out.labels)


DATASETS: dict[str, Callable[..., Pair]] = {
    **{f.__name__: f for f in (digits, mnist, fashion_mnist, kmnist, emnist_letters, usps, cifar10, cifar100, svhn)},
    **{f.__name__: f for f in (tiny_imagenet, cub200, flowers102, stanford_cars, fgvc_aircraft, omniglot, core50)},
    **{f.__name__: f for f in (image_folder,)},
}
"""Name in YAML -> function that gives (train, test). Its docstring's first line describes it."""


def load_dataset(spec: str | dict[str, Any]) -> Pair:
    """Give (train, test) of a data set by its name, or by a map with ``name`` and its options.

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
    known = list(inspect.signature(DATASETS[name]).parameters)
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"dataset {name} has no option {key!r}; it has: {', '.join(known) or 'none'}")
        if isinstance(value, list | dict):
            raise ValueError(f"dataset {name}: {key} is {value!r}; give text or a number")
    try:
        return _load(name, tuple(sorted(options.items())), data_root())
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"dataset {name}: {first['loc'][0]} is {first['input']!r}; {first['msg']}") from None


def fingerprint(spec: str | dict[str, Any]) -> str:
    """Give a short text that differs where labels, or any of a thousand images over the whole data set, differ."""
    digest = hashlib.sha256()
    for part in load_dataset(spec):
        looked_at = torch.linspace(0, len(part) - 1, min(len(part), 1000)).long()
        digest.update(part.labels.numpy().tobytes())
        digest.update(part.pixels[part.rows[looked_at]].numpy().tobytes())
    return digest.hexdigest()[:16]


def hold_out(images: Images, share: float, name: str = "validation", seed: int = 0) -> Pair:
    """Divide labelled data into (kept, held out), class by class.

    ``share`` is from 0 to 1, or the number of images to hold out if it is an int; ``name`` is that of
    the option it comes from.
    """
    labels, classes = images.labels, len(images.labels.unique())
    if int(labels.bincount()[labels.unique()].min()) < 2:
        raise ValueError(f"{name} needs two images of each class; a class has one")
    counted = isinstance(share, int)
    whole, form = (len(labels), "d") if counted else (1, ".3f")
    least = classes if counted else classes / len(labels)  # one of each class on both sides
    if not least <= share <= whole - least:
        raise ValueError(f"{name} is {share}; {len(labels)} images need {least:{form}} to {whole - least:{form}}")
    kept, held = train_test_split(
        range(len(labels)), test_size=share, stratify=labels.numpy(), random_state=seed % 2**32
    )
    return images.subset(torch.tensor(kept)), images.subset(torch.tensor(held))


_TEST = ("test", "val", "valid")


def _imported(function: Any = None, **options: Any) -> Pair:
    """Return the (train, test) of a function of the user's own."""
    if not isinstance(function, str):
        raise ValueError(f"dataset import: function is {function!r}; give package.module:name")
    check_options(import_function(function), options, (), function)
    return _load_imported(function, tuple(sorted(options.items())))


@cache
def _load_imported(function: str, options: tuple[tuple[str, Any], ...]) -> Pair:
    found = import_function(function)(**dict(options))
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Images) for part in found)):
        raise ValueError(f"{function} returned {type(found).__name__}; expected (train, test) of mas.benchmarks.Images")
    return found


@cache
def _load(name: str, options: tuple[tuple[str, Any], ...], root: Path) -> Pair:  # another root, other data
    return validate_call(config=ConfigDict(strict=True))(DATASETS[name])(**dict(options))


def _found(path: str) -> Path:
    """Give a path that is absolute, or taken from the data root."""
    found = data_root() / Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{path}: not in {data_root()}; give another path, or set MAS_DATA or --data")
    return found


def _trees(here: Path, test: str | None, split_file: str | None) -> tuple[Tree, Tree | None]:
    """Find the images to train on and those to test on; None for these where nothing tells."""
    if split_file:
        return _by_split_file(_tree(here, ""), _found(split_file))
    if test:
        return _tree(here, "train", ""), _tree(_found(test), *_TEST, "")
    apart = find_tree(here, *_TEST)
    return _tree(here, "train", *([] if apart else [""])), apart


def _tree(here: Path, *inside: str) -> Tree:
    tree = find_tree(here, *inside)
    if tree is None:
        raise DataError(f"{here}: holds no images as <class>/<file>, also not in a folder called train")
    return tree


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no text file ({error}); each line is <class>/<file> train, or ... test") from None


def _by_split_file(tree: Tree, file: Path) -> tuple[Tree, Tree]:
    parts: dict[str, list[str]] = {"train": [], "test": []}
    files = set(tree.files)
    for number, line in enumerate(_text(file).splitlines(), 1):
        name, _, part = line.strip().rpartition(" ")
        if not line.strip():
            continue
        if part not in parts or name not in files:
            raise DataError(f"{file}:{number}: found {line.strip()!r}; each line is <class>/<file> train, or ... test")
        parts[part].append(name)
    return tree.only(sorted(parts["train"])), tree.only(sorted(parts["test"]))
