"""Streams: how data sets become sequences of experiences, as ordinary Avalanche benchmarks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import MinLen
from avalanche.benchmarks import CLScenario

from mas.annotations import Count, Experiences, NonNegativeInt, Padding, PartialShare
from mas.benchmarks.building import (
    Augment,
    Scenario,
    brought_together,
    check_scenario,
    check_shapes,
    class_count,
    make_benchmark,
    padding,
    prepare,
    select_classes,
)
from mas.benchmarks.changes import Permutation, Rotation
from mas.benchmarks.datasets import DatasetSpec, hold_out
from mas.benchmarks.deficits import DeficitSpec, apply_deficit, make_deficit
from mas.benchmarks.images import Images, Pair, Transform
from mas.benchmarks.names import class_set_name, dataset_name, deficit_name
from mas.benchmarks.tasks import mixture, one_vs_rest, pairs

ClassOrder = Literal["fixed", "random"] | list[NonNegativeInt]
Angles = Literal["even", "random"] | list[float]


def split(
    dataset: DatasetSpec = "digits",
    experiences: Experiences | list[Count] = 5,
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
    check_scenario(scenario)
    train, test = prepare(dataset, validation=validation, normalize=normalize, augment=augment)
    classes = class_count(train)
    order = torch.tensor(_order(class_order, classes, seed))
    sizes = _sizes(experiences, classes, dataset)
    parts = []
    names = []
    for own in order.split(sizes):
        labels = own if scenario == "class" else torch.arange(len(own))
        parts.append((select_classes(train, own, labels), select_classes(test, own, labels)))
        names.append(class_set_name(train, own.tolist()))
    return make_benchmark(parts, names, tasks=scenario == "task")


def permuted(
    dataset: DatasetSpec = "mnist",
    experiences: Experiences = 10,
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
    pair = prepare(dataset, validation=validation, normalize=normalize)
    pixels = math.prod(pair[0].pixels.shape[2:])
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(pixels, generator=generator) for _ in range(experiences)]
    names = [f"permutation {number}" for number in range(experiences)]
    if first == "plain":
        orders[0] = torch.arange(pixels)
        names[0] = "plain"
    return _one_change_each(pair, [Permutation(order) for order in orders], names, scenario)


def rotated(
    dataset: DatasetSpec = "mnist",
    experiences: Experiences = 5,
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
    pair = prepare(dataset, validation=validation, normalize=normalize)
    names = [f"{round(angle, 1):g}°" for angle in degrees]
    return _one_change_each(pair, [Rotation(angle) for angle in degrees], names, scenario)


def instances(
    dataset: DatasetSpec = "digits",
    experiences: Experiences = 5,
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
    train, test = prepare(dataset, validation=validation, normalize=normalize, augment=augment)
    fewest = min(int(part.labels.bincount().min()) for part in (train, test))
    if experiences > fewest:
        raise ValueError(f"experiences is {experiences}; a class has {fewest} images, so give 1 to {fewest}")
    generator = torch.Generator().manual_seed(seed)
    train_parts = _deal(train, experiences, generator)
    test_parts = _deal(test, experiences, generator)
    names = [f"part {number}" for number in range(experiences)]
    return make_benchmark(list(zip(train_parts, test_parts, strict=True)), names, tasks=False)


def whole(
    dataset: DatasetSpec = "digits",
    train: Count | None = None,
    *,
    test: Count | None = None,
    pad: Padding = 0,
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
    pair = prepare(dataset, padding(pad), validation=validation, normalize=normalize, augment=augment)
    return make_benchmark([_draw_pair(pair, train, test, seed)], [dataset_name(dataset)], tasks=False)


def deficit_then_clear(
    deficit: DeficitSpec,
    dataset: DatasetSpec = "digits",
    *,
    train: Count | None = None,
    test: Count | None = None,
    pad: Padding = 0,
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
    pair = prepare(dataset, padding(pad), validation=validation, normalize=normalize, augment=augment)
    clear_train, clear_test = _draw_pair(pair, train, test, seed)
    made = make_deficit(deficit, class_count(clear_train), seed=seed)
    impaired_train = apply_deficit(clear_train, made, seed=seed)
    impaired_test = apply_deficit(clear_test, made, seed=seed + 1)
    parts = [(impaired_train, impaired_test), (clear_train, clear_test)]
    return make_benchmark(parts, [deficit_name(deficit), "clear"], tasks=False)


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
    resize = brought_together(datasets, size)
    parts = [
        prepare(dataset, (resize,), validation=validation, normalize=normalize, augment=augment) for dataset in datasets
    ]
    check_shapes(parts)
    return make_benchmark(parts, [dataset_name(dataset) for dataset in datasets], tasks=True)


STREAMS: dict[str, Callable[..., CLScenario]] = {
    "split": split,
    "permuted": permuted,
    "rotated": rotated,
    "instances": instances,
    "one_vs_rest": one_vs_rest,
    "pairs": pairs,
    "mixture": mixture,
    "sequence": sequence,
    "whole": whole,
    "deficit_then_clear": deficit_then_clear,
}
"""Name in YAML -> function that returns an Avalanche benchmark; its arguments are the keys beside the name."""


def _draw_pair(pair: Pair, train: int | None, test: int | None, seed: int) -> Pair:
    """Return a part of the training images, drawn with ``seed``, and a fixed part of the test images."""
    return _draw(pair[0], train, "train", seed), _draw(pair[1], test, "test", 0)


def _draw(images: Images, number: int | None, name: str, seed: int) -> Images:
    """Return ``number`` of the images, drawn class by class; None for all."""
    if number is None or number == len(images):
        return images
    _, drawn = hold_out(images, number, name=name, seed=seed)
    return drawn


def _one_change_each(pair: Pair, changes: Sequence[Transform], names: Sequence[str], scenario: str) -> CLScenario:
    """Return a benchmark that shows all data in each experience, with one of the changes."""
    check_scenario(scenario)
    classes = class_count(pair[0])
    parts = []
    for number, change in enumerate(changes):
        offset = number * classes if scenario == "class" else 0
        train, test = (replace(part, changes=(*part.changes, change), labels=part.labels + offset) for part in pair)
        parts.append((train, test))
    return make_benchmark(parts, names, tasks=scenario == "task")


def _deal(images: Images, hands: int, generator: torch.Generator) -> list[Images]:
    """Divide images into ``hands`` parts with the same share of each class, at random."""
    shuffled = torch.randperm(len(images), generator=generator)
    by_class = shuffled[images.labels[shuffled].argsort(stable=True)]
    return [images.subset(by_class[hand::hands].sort().values) for hand in range(hands)]


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
