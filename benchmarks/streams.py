"""Streams: how data sets become sequences of experiences, as ordinary Avalanche benchmarks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import MinLen
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from mas.annotations import Count, NonNegativeInt, PartialShare
from mas.benchmarks.datasets import hold_out, load_dataset
from mas.benchmarks.deficits import DeficitSpec, apply_deficit, make_deficit
from mas.benchmarks.images import AUGMENTATIONS, Images, Pair, as_dataset, channel_statistics

Scenario = Literal["task", "domain", "class"]
Augment = Literal["none", "flip", "crop", "crop_flip"]
DatasetSpec = str | dict[str, Any]


def split(
    dataset: DatasetSpec = "digits",
    experiences: Count | list[Count] = 5,
    scenario: Scenario = "domain",
    class_order: Literal["fixed", "random"] | list[NonNegativeInt] = "random",
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> Any:
    """Divide the classes of a data set over the experiences, each class in exactly one.

    Args:
        dataset: a name in `DATASETS`, or a map with its ``name`` and options.
        experiences: their number, at most the number of classes (where classes do not divide
            evenly, the first get one more each); or a list of the number of classes in each.
        scenario: "task": task identity known at test, labels from 0 in each experience;
            "domain": the same labels, no identity; "class": all classes told apart (van de Ven
            and Tolias 2019).
        class_order: "random" draws the order from ``seed``, so that results do not hang on which
            classes happen to meet; "fixed" takes them in numerical order; a list gives it.
        validation: hold out this share of the training data, class by class, and test on it
            *instead of* the test data: for choosing settings without a look at the test data.
        normalize: bring each channel to mean 0 and deviation 1 over the training images.
        augment: what is done to training batches: "flip" and "crop" (4 pixels) at random.
        seed: of the random order alone; no global random state is touched.

    Returns:
        An Avalanche benchmark with ``train_stream`` and ``test_stream``.

    Raises:
        ValueError: an unknown name, more experiences than classes, or an order that is not one
            of all classes.
    """
    _check_name("scenario", scenario, ("task", "domain", "class"))
    pair = _prepared(dataset, validation, normalize, augment)
    classes = _classes(pair)
    order = torch.tensor(_order(class_order, classes, seed))
    parts = []
    for own in order.split(_sizes(experiences, classes, dataset)):
        shown = own if scenario == "class" else torch.arange(len(own))
        parts.append((_of_classes(pair[0], own, shown), _of_classes(pair[1], own, shown)))
    return _benchmark(parts, tasks=scenario == "task")


def permuted(
    dataset: DatasetSpec = "mnist",
    experiences: Count = 10,
    scenario: Scenario = "domain",
    first: Literal["plain", "permuted"] = "plain",
    validation: PartialShare = 0.0,
    normalize: bool = True,
    seed: int = 0,
) -> Any:
    """Show all classes in each experience, the pixels in another order each time (Goodfellow 2014).

    Args:
        dataset, validation, normalize: as for `split`.
        experiences: their number.
        scenario: "domain": the same outputs for all; "task": a head for each; "class": classes
            of each experience told apart from all others.
        first: whether the first experience keeps the pixels where they are.
        seed: of the permutations.
    """
    pair = _prepared(dataset, validation, normalize, "none")
    generator, pixels = torch.Generator().manual_seed(seed), math.prod(pair[0].pixels.shape[2:])
    orders = [torch.randperm(pixels, generator=generator) for _ in range(experiences)]
    if first == "plain":
        orders[0] = torch.arange(pixels)
    return _changed(pair, [_Permutation(order) for order in orders], scenario)


def rotated(
    dataset: DatasetSpec = "mnist",
    experiences: Count = 5,
    scenario: Scenario = "domain",
    angles: Literal["even", "random"] | list[float] = "even",
    validation: PartialShare = 0.0,
    normalize: bool = True,
    seed: int = 0,
) -> Any:
    """Show all classes in each experience, the images turned by another angle each time (Lopez-Paz 2017).

    Args:
        dataset, validation, normalize: as for `split`.
        experiences, scenario: as for `permuted`.
        angles: in degrees, counterclockwise: "even" from 0 to below 180, "random" from 0 to 180
            drawn from ``seed``, or a list of one for each experience.
        seed: of random angles.
    """
    if angles == "even":
        degrees = [180 * e / experiences for e in range(experiences)]
    elif angles == "random":
        degrees = (180 * torch.rand(experiences, generator=torch.Generator().manual_seed(seed))).tolist()
    elif isinstance(angles, str) or len(angles) != experiences:
        raise ValueError(f"angles is {angles}; give 'even', 'random' or a list of {experiences} degrees")
    else:
        degrees = list(angles)
    pair = _prepared(dataset, validation, normalize, "none")
    return _changed(pair, [_Rotation(angle) for angle in degrees], scenario)


def instances(
    dataset: DatasetSpec = "digits",
    experiences: Count = 5,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> Any:
    """Show new images of all classes in each experience: every image in one, drawn class by class.

    Args:
        dataset, validation, normalize, augment: as for `split`.
        experiences: their number.
        seed: of the draw.
    """
    pair = _prepared(dataset, validation, normalize, augment)
    generator = torch.Generator().manual_seed(seed)
    fewest = min(int(part.labels.bincount().min()) for part in pair)
    if experiences > fewest:
        raise ValueError(f"experiences is {experiences}; a class has {fewest} images, so give 1 to {fewest}")
    dealt = [_deal(part, experiences, generator) for part in pair]
    return _benchmark([(a, b) for a, b in zip(*dealt, strict=True)], tasks=False)


def whole(
    dataset: DatasetSpec = "digits",
    train: Count | None = None,
    test: Count | None = None,
    pad: NonNegativeInt = 0,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> Any:
    """Show all data in a single experience: ordinary training, as critical periods are studied in.

    Args:
        dataset, validation, normalize, augment: as for `split`.
        train, test: how many images to take, class by class; by default all.
        pad: pixels of black to add on each side.
        seed: of which training images are taken; test images are always the same.
    """
    return _benchmark([_whole(dataset, train, test, pad, validation, normalize, augment, seed)], tasks=False)


def deficit_then_clear(
    deficit: DeficitSpec,
    dataset: DatasetSpec = "digits",
    train: Count | None = None,
    test: Count | None = None,
    pad: NonNegativeInt = 0,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> Any:
    """Show all data twice: first impaired by a deficit, for training and test, then clear.

    Args:
        deficit: a name in `DEFICITS`, a map with its ``name`` and options, or a function, see
            `mas.benchmarks.deficits`.
        dataset, train, test, pad, validation, normalize, augment: as for `whole`.
        seed: of which training images are taken, and of what the deficit draws.
    """
    clear = _whole(dataset, train, test, pad, validation, normalize, augment, seed)
    made = make_deficit(deficit, _classes(clear), seed)
    blind = (apply_deficit(clear[0], made, seed), apply_deficit(clear[1], made, seed + 1))
    return _benchmark([blind, clear], tasks=False)


def sequence(
    datasets: Annotated[list[DatasetSpec], MinLen(1)],
    size: Count | None = None,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> Any:
    """Show one data set after another, each with its head (task scenario).

    Args:
        datasets: names or maps, as for `split`.
        size: bring all images to this many pixels; by default they must agree. Grey images get
            three channels where others have colour.
        validation, normalize, augment: as for `split`; each data set is normalised by itself.
        seed: not used; the order is the list's.
    """
    channels = max(load_dataset(dataset)[0].pixels.shape[1] for dataset in datasets)
    change = _Resized(channels, size)
    parts = [_prepared(dataset, validation, normalize, augment, change) for dataset in datasets]
    shapes = {tuple(train[0][0].shape) for train, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"images of the data sets have the shapes {sorted(shapes)}; give size to bring them to one")
    return _benchmark(parts, tasks=True)


STREAMS: dict[str, Callable[..., Any]] = {
    "split": split,
    "permuted": permuted,
    "rotated": rotated,
    "instances": instances,
    "sequence": sequence,
    "whole": whole,
    "deficit_then_clear": deficit_then_clear,
}
"""Name in YAML -> function that gives an Avalanche benchmark; its arguments are the keys beside it."""


@dataclass(frozen=True)
class _Permutation:
    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, self.order.to(x.device)].reshape(x.shape)


@dataclass(frozen=True)
class _Rotation:
    degrees: float

    def __call__(self, x: Tensor) -> Tensor:
        return rotate(x, self.degrees, InterpolationMode.BILINEAR)


@dataclass(frozen=True)
class _Resized:
    channels: int
    size: int | None

    def __call__(self, x: Tensor) -> Tensor:
        if self.size and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x.expand(-1, self.channels, -1, -1) if x.shape[1] == 1 else x


@dataclass(frozen=True)
class _Padded:
    pixels: int

    def __call__(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.pixels,) * 4)


def _whole(
    dataset: DatasetSpec,
    train: int | None,
    test: int | None,
    pad: int,
    validation: float,
    normalize: bool,
    augment: str,
    seed: int,
) -> Pair:
    pair = _prepared(dataset, validation, normalize, augment, *([_Padded(pad)] if pad else []))
    return _taken(pair[0], train, "train", seed), _taken(pair[1], test, "test", 0)


def _taken(images: Images, number: int | None, name: str, seed: int) -> Images:
    """Take some of the images, class by class."""
    return images if number in (None, len(images)) else hold_out(images, number, name, seed)[1]


def _prepared(dataset: DatasetSpec, validation: float, normalize: bool, augment: str, *changes: Any) -> Pair:
    """Load a data set; what is done to its batches goes with it."""
    _check_name("augment", augment, AUGMENTATIONS)
    train, test = _divided(load_dataset(dataset), validation, normalize, changes)
    return replace(train, augment=AUGMENTATIONS[augment]), test


@cache  # goes through all images, and a process builds the stream for every cell; data sets are told apart by identity
def _divided(pair: Pair, validation: float, normalize: bool, changes: tuple[Any, ...]) -> Pair:
    train, test = (replace(part, changes=changes) for part in pair)
    if validation:
        train, test = hold_out(train, validation)
    scale = channel_statistics(train) if normalize else None
    return replace(train, scale=scale), replace(test, scale=scale)


def _changed(pair: Pair, changes: Sequence[Any], scenario: str) -> Any:
    """Show all data in each experience, changed in another way each time."""
    _check_name("scenario", scenario, ("task", "domain", "class"))
    classes = _classes(pair)
    parts = []
    for number, change in enumerate(changes):
        offset = number * classes if scenario == "class" else 0
        parts.append(tuple(replace(p, changes=(*p.changes, change), labels=p.labels + offset) for p in pair))
    return _benchmark(parts, tasks=scenario == "task")


def _benchmark(parts: Sequence[Any], tasks: bool) -> Any:
    """Make an Avalanche benchmark of (train, test) images for each experience."""
    streams = {
        name: [as_dataset(pair[side], number if tasks else 0) for number, pair in enumerate(parts)]
        for side, name in enumerate(("train", "test"))
    }
    made = with_task_labels(with_classes_timeline(benchmark_from_datasets(**streams)))
    for stream in made.streams.values():
        stream.benchmark = made  # Avalanche leaves it out; by it an experience finds its test data
    return made


def _of_classes(images: Images, classes: Tensor, shown: Tensor) -> Images:
    """Give the images of some classes, labelled as shown."""
    as_shown = torch.full((int(max(images.labels.max(), classes.max())) + 1,), -1)
    as_shown[classes] = shown
    labels = as_shown[images.labels]
    kept = (labels >= 0).nonzero()[:, 0]
    return replace(images.subset(kept), labels=labels[kept])


def _deal(images: Images, hands: int, generator: torch.Generator) -> list[Images]:
    """Deal images out in turns, class by class, in a random order."""
    shuffled = torch.randperm(len(images), generator=generator)
    by_class = shuffled[images.labels[shuffled].argsort(stable=True)]
    return [images.subset(by_class[hand::hands].sort().values) for hand in range(hands)]


def _classes(pair: Pair) -> int:
    return int(pair[0].labels.max()) + 1


def _sizes(experiences: int | Sequence[int], classes: int, dataset: DatasetSpec) -> list[int]:
    name = dataset if isinstance(dataset, str) else dataset["name"]
    if isinstance(experiences, int):
        if not 1 <= experiences <= classes:
            raise ValueError(f"experiences is {experiences}; {name} has {classes} classes, so give 1 to {classes}")
        return [len(part) for part in np.array_split(range(classes), experiences)]
    if min(experiences, default=0) < 1 or sum(experiences) != classes:
        raise ValueError(
            f"experiences is {list(experiences)}; the numbers must add up to the {classes} classes of {name}"
        )
    return list(experiences)


def _order(class_order: str | Sequence[int], classes: int, seed: int) -> list[int]:
    if class_order == "fixed":
        return list(range(classes))
    if class_order == "random":
        return torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    if isinstance(class_order, str) or sorted(class_order) != list(range(classes)):
        raise ValueError(
            f"class_order is {class_order}; "
            f"give 'fixed', 'random' or a list of the classes 0 to {classes - 1}, each once"
        )
    return list(class_order)


def _check_name(key: str, name: str, known: Any) -> None:
    if name not in known:
        raise ValueError(f"{key} is {name!r}; known are {', '.join(known)}")
