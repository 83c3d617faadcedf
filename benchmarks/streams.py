"""Streams: how data sets become sequences of experiences, as ordinary Avalanche benchmarks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import MinLen
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from mas.annotations import Count, NonNegativeInt, PartialShare
from mas.benchmarks.datasets import DatasetSpec, hold_out, load_dataset
from mas.benchmarks.deficits import DeficitSpec, apply_deficit, make_deficit
from mas.benchmarks.images import AUGMENTATIONS, Images, Pair, Transform, as_dataset, channel_statistics

Scenario = Literal["task", "domain", "class"]
Augment = Literal["none", "flip", "crop", "crop_flip"]
ClassOrder = Literal["fixed", "random"] | list[NonNegativeInt]
Angles = Literal["even", "random"] | list[float]


def split(
    dataset: DatasetSpec = "digits",
    experiences: Count | list[Count] = 5,
    *,
    scenario: Scenario = "domain",
    class_order: ClassOrder = "random",
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> CLScenario:
    """Divide the classes of a data set over the experiences, each class in exactly one.

    Args:
        dataset: a name in `DATASETS`, or a map with its ``name`` and options.
        experiences: their number, at most the number of classes (where classes do not divide
            evenly, the first get one more each); or a list of the number of classes in each.
        scenario: "task": task identity known at test, labels from 0 in each experience;
            "domain": the same labels, no identity; "class": all classes told apart (van de Ven
            and Tolias 2019).
        class_order: "random" draws the order from ``seed``, so that results do not depend on which
            classes share an experience; "fixed" is the numerical order; or a list of the classes.
        validation: hold out this share of the training data, class by class, and test on it
            *instead of* the test data: to choose settings without using the test data.
        normalize: scale each channel to mean 0 and deviation 1 over the training images.
        augment: random augmentation of training batches: "flip", "crop" (by up to 4 pixels) or both.
        seed: of the random order; no global random state is used.

    Returns:
        An Avalanche benchmark with ``train_stream`` and ``test_stream``.

    Raises:
        ValueError: an unknown name, more experiences than classes, or an order that is not one
            of all classes.
    """
    _check_scenario(scenario)
    train, test = _prepare(dataset, validation=validation, normalize=normalize, augment=augment)
    classes = _class_count(train)
    order = torch.tensor(_order(class_order, classes, seed))
    sizes = _sizes(experiences, classes, dataset)
    parts = []
    for own in order.split(sizes):
        labels = own if scenario == "class" else torch.arange(len(own))
        parts.append((_select_classes(train, own, labels), _select_classes(test, own, labels)))
    return _benchmark(parts, tasks=scenario == "task")


def permuted(
    dataset: DatasetSpec = "mnist",
    experiences: Count = 10,
    *,
    scenario: Scenario = "domain",
    first: Literal["plain", "permuted"] = "plain",
    validation: PartialShare = 0.0,
    normalize: bool = True,
    seed: int = 0,
) -> CLScenario:
    """Show all classes in each experience, with the pixels in a different order each time (Goodfellow 2014).

    Args:
        dataset, validation, normalize: as for `split`.
        experiences: their number.
        scenario: "domain": the same outputs for all; "task": a head for each; "class": the classes
            of each experience are distinct from all others.
        first: "plain" leaves the pixels of the first experience in place.
        seed: of the permutations.
    """
    pair = _prepare(dataset, validation=validation, normalize=normalize)
    pixels = math.prod(pair[0].pixels.shape[2:])
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(pixels, generator=generator) for _ in range(experiences)]
    if first == "plain":
        orders[0] = torch.arange(pixels)
    return _one_change_each(pair, [_Permutation(order) for order in orders], scenario)


def rotated(
    dataset: DatasetSpec = "mnist",
    experiences: Count = 5,
    *,
    scenario: Scenario = "domain",
    angles: Angles = "even",
    validation: PartialShare = 0.0,
    normalize: bool = True,
    seed: int = 0,
) -> CLScenario:
    """Show all classes in each experience, with the images rotated by a different angle each time (Lopez-Paz 2017).

    Args:
        dataset, validation, normalize: as for `split`.
        experiences, scenario: as for `permuted`.
        angles: in degrees, counterclockwise: "even" from 0 to below 180, "random" from 0 to 180
            drawn from ``seed``, or a list with one for each experience.
        seed: of random angles.
    """
    degrees = _degrees(angles, experiences, seed)
    pair = _prepare(dataset, validation=validation, normalize=normalize)
    return _one_change_each(pair, [_Rotation(angle) for angle in degrees], scenario)


def instances(
    dataset: DatasetSpec = "digits",
    experiences: Count = 5,
    *,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> CLScenario:
    """Show new images of all classes in each experience: each image in exactly one, drawn class by class.

    Args:
        dataset, validation, normalize, augment: as for `split`.
        experiences: their number.
        seed: of the draw.
    """
    train, test = _prepare(dataset, validation=validation, normalize=normalize, augment=augment)
    fewest = min(int(part.labels.bincount().min()) for part in (train, test))
    if experiences > fewest:
        raise ValueError(f"experiences is {experiences}; a class has {fewest} images, so give 1 to {fewest}")
    generator = torch.Generator().manual_seed(seed)
    train_parts = _deal(train, experiences, generator)
    test_parts = _deal(test, experiences, generator)
    return _benchmark(list(zip(train_parts, test_parts, strict=True)), tasks=False)


def whole(
    dataset: DatasetSpec = "digits",
    train: Count | None = None,
    *,
    test: Count | None = None,
    pad: NonNegativeInt = 0,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> CLScenario:
    """Show all data in a single experience: ordinary training, in which critical periods are studied.

    Args:
        dataset, validation, normalize, augment: as for `split`.
        train, test: numbers of images, drawn class by class; by default all.
        pad: black pixels to add on each side.
        seed: of the draw of training images; test images are always the same.
    """
    pair = _prepare(dataset, _padding(pad), validation=validation, normalize=normalize, augment=augment)
    return _benchmark([_draw_pair(pair, train, test, seed)], tasks=False)


def deficit_then_clear(
    deficit: DeficitSpec,
    dataset: DatasetSpec = "digits",
    *,
    train: Count | None = None,
    test: Count | None = None,
    pad: NonNegativeInt = 0,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> CLScenario:
    """Show all data twice: first with a deficit, in training and test, then without.

    Args:
        deficit: a name in `DEFICITS`, a map with its ``name`` and options, or a function, see
            `mas.benchmarks.deficits`.
        dataset, train, test, pad, validation, normalize, augment: as for `whole`.
        seed: of the draw of training images, and of the deficit's draws.
    """
    pair = _prepare(dataset, _padding(pad), validation=validation, normalize=normalize, augment=augment)
    clear_train, clear_test = _draw_pair(pair, train, test, seed)
    made = make_deficit(deficit, _class_count(clear_train), seed=seed)
    impaired_train = apply_deficit(clear_train, made, seed=seed)
    impaired_test = apply_deficit(clear_test, made, seed=seed + 1)
    return _benchmark([(impaired_train, impaired_test), (clear_train, clear_test)], tasks=False)


def sequence(
    datasets: Annotated[list[DatasetSpec], MinLen(1)],
    size: Count | None = None,
    *,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> CLScenario:
    """Show one data set after another, each with its head (task scenario).

    Args:
        datasets: names or maps, as for `split`.
        size: resize all images to this many pixels; by default their sizes must agree. Grey images get
            three channels if others have colour.
        validation, normalize, augment: as for `split`; each data set is normalised on its own.
        seed: not used; the order is that of the list.
    """
    channels = max(load_dataset(dataset)[0].pixels.shape[1] for dataset in datasets)
    resize = _Resized(channels, size)
    parts = [
        _prepare(dataset, (resize,), validation=validation, normalize=normalize, augment=augment)
        for dataset in datasets
    ]
    shapes = {tuple(train[0][0].shape) for train, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"images of the data sets have the shapes {sorted(shapes)}; give size to bring them to one")
    return _benchmark(parts, tasks=True)


STREAMS: dict[str, Callable[..., CLScenario]] = {
    "split": split,
    "permuted": permuted,
    "rotated": rotated,
    "instances": instances,
    "sequence": sequence,
    "whole": whole,
    "deficit_then_clear": deficit_then_clear,
}
"""Name in YAML -> function that returns an Avalanche benchmark; its arguments are the keys beside the name."""


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


def _padding(pixels: int) -> tuple[Transform, ...]:
    return (_Padded(pixels),) if pixels else ()


def _draw_pair(pair: Pair, train: int | None, test: int | None, seed: int) -> Pair:
    """Return a part of the training images, drawn with ``seed``, and a fixed part of the test images."""
    return _draw(pair[0], train, "train", seed), _draw(pair[1], test, "test", 0)


def _draw(images: Images, number: int | None, name: str, seed: int) -> Images:
    """Return ``number`` of the images, drawn class by class; None for all."""
    if number is None or number == len(images):
        return images
    _, drawn = hold_out(images, number, name=name, seed=seed)
    return drawn


def _prepare(
    dataset: DatasetSpec,
    changes: tuple[Transform, ...] = (),
    *,
    validation: float,
    normalize: bool,
    augment: str = "none",
) -> Pair:
    """Load a data set and attach what is to be done to its batches."""
    _check_name("augment", augment, tuple(AUGMENTATIONS))
    train, test = _normalized(load_dataset(dataset), changes, validation, normalize)
    return replace(train, augment=AUGMENTATIONS[augment]), test


# Cached, as it reads all images and a process builds the stream for every cell. Images are hashed by identity.
@cache
def _normalized(pair: Pair, changes: tuple[Transform, ...], validation: float, normalize: bool) -> Pair:
    train, test = (replace(part, changes=changes) for part in pair)
    if validation:
        train, test = hold_out(train, validation)
    scale = channel_statistics(train) if normalize else None
    return replace(train, scale=scale), replace(test, scale=scale)


def _one_change_each(pair: Pair, changes: Sequence[Transform], scenario: str) -> CLScenario:
    """Return a benchmark that shows all data in each experience, with one of the changes."""
    _check_scenario(scenario)
    classes = _class_count(pair[0])
    parts = []
    for number, change in enumerate(changes):
        offset = number * classes if scenario == "class" else 0
        train, test = (replace(part, changes=(*part.changes, change), labels=part.labels + offset) for part in pair)
        parts.append((train, test))
    return _benchmark(parts, tasks=scenario == "task")


def _benchmark(parts: Sequence[Pair], *, tasks: bool) -> CLScenario:
    """Return an Avalanche benchmark of the (train, test) images of each experience."""
    train = []
    test = []
    for number, (train_images, test_images) in enumerate(parts):
        task = number if tasks else 0
        train.append(as_dataset(train_images, task))
        test.append(as_dataset(test_images, task))
    plain = benchmark_from_datasets(train=train, test=test)
    benchmark = with_task_labels(with_classes_timeline(plain))
    for stream in benchmark.streams.values():
        stream.benchmark = benchmark  # Avalanche leaves it out; an experience finds its test data through it
    return benchmark


def _select_classes(images: Images, classes: Tensor, new_labels: Tensor) -> Images:
    """Return the images of some classes, with new labels."""
    size = int(max(images.labels.max(), classes.max())) + 1
    new_label = torch.full((size,), -1)
    new_label[classes] = new_labels
    labels = new_label[images.labels]
    kept = (labels >= 0).nonzero()[:, 0]
    return replace(images.subset(kept), labels=labels[kept])


def _deal(images: Images, hands: int, generator: torch.Generator) -> list[Images]:
    """Divide images into ``hands`` parts with the same share of each class, at random."""
    shuffled = torch.randperm(len(images), generator=generator)
    by_class = shuffled[images.labels[shuffled].argsort(stable=True)]
    return [images.subset(by_class[hand::hands].sort().values) for hand in range(hands)]


def _class_count(images: Images) -> int:
    return int(images.labels.max()) + 1


def _degrees(angles: Angles, experiences: int, seed: int) -> list[float]:
    """Return the angle of each experience."""
    if angles == "even":
        return [180 * number / experiences for number in range(experiences)]
    if angles == "random":
        generator = torch.Generator().manual_seed(seed)
        return (180 * torch.rand(experiences, generator=generator)).tolist()
    if isinstance(angles, str) or len(angles) != experiences:
        raise ValueError(f"angles is {angles}; give 'even', 'random' or a list of {experiences} degrees")
    return list(angles)


def _sizes(experiences: int | Sequence[int], classes: int, dataset: DatasetSpec) -> list[int]:
    """Return the number of classes in each experience."""
    name = dataset if isinstance(dataset, str) else dataset["name"]
    if isinstance(experiences, int):
        if not 1 <= experiences <= classes:
            raise ValueError(f"experiences is {experiences}; {name} has {classes} classes, so give 1 to {classes}")
        parts = np.array_split(range(classes), experiences)
        return [len(part) for part in parts]
    if min(experiences, default=0) < 1 or sum(experiences) != classes:
        raise ValueError(
            f"experiences is {list(experiences)}; the numbers must add up to the {classes} classes of {name}"
        )
    return list(experiences)


def _order(class_order: str | Sequence[int], classes: int, seed: int) -> list[int]:
    """Return the classes in the order in which they appear."""
    if class_order == "fixed":
        return list(range(classes))
    if class_order == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(classes, generator=generator).tolist()
    if isinstance(class_order, str) or sorted(class_order) != list(range(classes)):
        raise ValueError(
            f"class_order is {class_order}; "
            f"give 'fixed', 'random' or a list of the classes 0 to {classes - 1}, each once"
        )
    return list(class_order)


def _check_scenario(scenario: str) -> None:
    _check_name("scenario", scenario, get_args(Scenario))


def _check_name(key: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{key} is {name!r}; known are {', '.join(known)}")
