"""Streams of many small tasks for studies of how tasks relate: each class, each pair of classes, random mixtures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Annotated, Literal

import torch
from annotated_types import MinLen
from avalanche.benchmarks import CLScenario
from torch import Tensor

from mas.annotations import Count, Experiences, PartialShare
from mas.benchmarks.building import (
    Augment,
    Scenario,
    brought_together,
    check_name,
    check_scenario,
    check_shapes,
    class_count,
    make_benchmark,
    prepare,
    select_classes,
)
from mas.benchmarks.changes import Inverted, Permutation, Rotation
from mas.benchmarks.datasets import DatasetSpec
from mas.benchmarks.images import Images, Pair, Transform
from mas.benchmarks.names import class_names, class_set_name, dataset_name

Change = Literal["plain", "rotated", "permuted", "inverted"]
ALL_CHANGES: list[Change] = ["plain", "rotated", "permuted", "inverted"]


def one_vs_rest(
    dataset: DatasetSpec = "digits",
    *,
    balanced: bool = True,
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> CLScenario:
    """Tell one class from all others in each experience: label 1 for the class, 0 for the rest (domain scenario).

    Args:
        dataset, validation, normalize, augment: as for `split`.
        balanced: of the rest, show as many images as of the class, in training and test, evenly over the
            other classes; all of them if there are fewer.
        seed: of the draw of these images.

    Returns:
        An Avalanche benchmark with an experience for each class, in numerical order.

    Raises:
        ValueError: a data set of one class.
    """
    pair = prepare(dataset, validation=validation, normalize=normalize, augment=augment)
    classes = class_count(pair[0])
    if classes < 2:
        raise ValueError(f"one_vs_rest needs two classes; {dataset_name(dataset)} has {classes}")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for own in range(classes):
        train, test = (_one_class_vs_rest(images, own, balanced, generator) for images in pair)
        parts.append((train, test))
    return make_benchmark(parts, class_names(pair[0], range(classes)), tasks=False)


def pairs(
    dataset: DatasetSpec = "digits",
    experiences: Experiences | None = None,
    *,
    scenario: Literal["task", "domain"] = "task",
    validation: PartialShare = 0.0,
    normalize: bool = True,
    augment: Augment = "none",
    seed: int = 0,
) -> CLScenario:
    """Tell two classes apart in each experience, one experience for each pair of classes: labels 0 and 1.

    Args:
        dataset, validation, normalize, augment: as for `split`.
        experiences: number of pairs, drawn at random; by default all, 45 for ten classes.
        scenario: "task" or "domain", as for `split`. Pairs share classes, so that there is no "class".
        seed: of the draw of pairs.

    Returns:
        An Avalanche benchmark with the pairs in lexicographic order.

    Raises:
        ValueError: more experiences than pairs.
    """
    check_name("scenario", scenario, ("task", "domain"))
    train, test = prepare(dataset, validation=validation, normalize=normalize, augment=augment)
    every = list(combinations(range(class_count(train)), 2))
    labels = torch.arange(2)
    parts = []
    names = []
    for pair in _draw_pairs(every, experiences, dataset_name(dataset), seed):
        own = torch.tensor(pair)
        parts.append((select_classes(train, own, labels), select_classes(test, own, labels)))
        names.append(" or ".join(class_names(train, pair)))
    return make_benchmark(parts, names, tasks=scenario == "task")


def mixture(
    datasets: Annotated[list[DatasetSpec], MinLen(1)],
    experiences: Experiences = 5,
    *,
    classes: Count = 2,
    changes: Annotated[list[Change], MinLen(1)] = ALL_CHANGES,
    train: Count | None = None,
    test: Count | None = None,
    size: Count | None = None,
    scenario: Scenario = "task",
    validation: PartialShare = 0.0,
    normalize: bool = True,
    seed: int = 0,
) -> CLScenario:
    """Draw a data set, some of its classes and a change of its images for each experience: streams of any mixture.

    The first experiences of a longer stream are those of a shorter one with the same seed.

    Args:
        datasets: names or maps, as for `split`.
        experiences: their number.
        classes: number of classes in each experience. No class of a data set comes twice while there are
            others left.
        changes: to draw from, by default all. "plain" is none; "rotated" turns the images counterclockwise by
            30 to 180 degrees; "permuted" moves the pixels, the same way in training and test; "inverted" shows
            light for dark.
        train, test: numbers of images in each experience, evenly over its classes; by default all.
        size: as for `sequence`.
        scenario: as for `permuted`.
        validation, normalize: as for `split`; each data set is normalised on its own.
        seed: of all draws.

    Raises:
        ValueError: more classes or images than a data set has, an unknown change, or images of several shapes.
    """
    check_scenario(scenario)
    for change in changes:
        check_name("changes", change, tuple(_CHANGES))
    load = partial(prepare, validation=validation, normalize=normalize)
    resize = brought_together(datasets, size)
    plain = [load(spec, (resize,)) for spec in datasets]
    check_shapes(plain)
    for spec, pair in zip(datasets, plain, strict=True):
        _check_enough(pair, classes, train, test, dataset_name(spec))
    counts = [class_count(images) for images, _ in plain]
    pixels = plain[0][0][0][0][0].numel()  # of one channel
    parts = []
    names = []
    for number, task in enumerate(_draw_tasks(counts, experiences, classes, changes, pixels, seed)):
        spec = datasets[task.dataset]
        pair = load(spec, (resize, *task.change.before))
        offset = number * classes if scenario == "class" else 0
        train_part = _images_of(task, pair[0], train, offset)
        test_part = _images_of(task, pair[1], test, offset)
        parts.append((train_part, test_part))
        names.append(f"{dataset_name(spec)} {class_set_name(pair[0], task.classes)} {task.change.name}".strip())
    return make_benchmark(parts, names, tasks=scenario == "task")


def _one_class_vs_rest(images: Images, own: int, balanced: bool, generator: torch.Generator) -> Images:
    """Return the images of a class with label 1, and others with label 0."""
    is_own = images.labels == own
    kept = is_own.nonzero()[:, 0]
    rest = (~is_own).nonzero()[:, 0]
    if balanced:
        rest = rest[_evenly(images.labels[rest], len(kept), generator)]
    index = torch.cat([kept, rest]).sort().values
    return replace(images.subset(index), labels=is_own[index].long(), class_names=None)


def _evenly(labels: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return ``number`` indices at random, in ascending order, whose labels are as evenly shared as can be."""
    shuffled = torch.randperm(len(labels), generator=generator)
    labels = labels[shuffled]
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(by_class)  # of each image among those of its class
    rank[by_class] = torch.arange(len(labels)) - first[labels[by_class]]
    return shuffled[rank.argsort(stable=True)[:number]].sort().values


def _draw_pairs(
    every: Sequence[tuple[int, int]], number: int | None, dataset: str, seed: int
) -> Sequence[tuple[int, int]]:
    """Return ``number`` of the pairs, in their order; all for None."""
    if number is None:
        return every
    if not 1 <= number <= len(every):
        raise ValueError(
            f"experiences is {number}; {dataset} has {len(every)} pairs of classes, so give 1 to {len(every)}"
        )
    drawn = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:number]
    return [every[index] for index in sorted(drawn.tolist())]


@dataclass(frozen=True)
class _Change:
    """What is done to the images of a task, before and after the standardisation is measured."""

    name: str
    before: tuple[Transform, ...] = ()
    after: tuple[Transform, ...] = ()


def _plain(pixels: int, generator: torch.Generator) -> _Change:
    return _Change("")


def _rotated(pixels: int, generator: torch.Generator) -> _Change:
    degrees = int(torch.randint(30, 181, (), generator=generator))
    return _Change(f"rotated {degrees}°", after=(Rotation(degrees),))


def _permuted(pixels: int, generator: torch.Generator) -> _Change:
    return _Change("permuted", after=(Permutation(torch.randperm(pixels, generator=generator)),))


def _inverted(pixels: int, generator: torch.Generator) -> _Change:
    return _Change("inverted", before=(Inverted(),))


_CHANGES: dict[str, Callable[[int, torch.Generator], _Change]] = {
    "plain": _plain,
    "rotated": _rotated,
    "permuted": _permuted,
    "inverted": _inverted,
}


@dataclass(frozen=True)
class _Task:
    dataset: int  # its place in the list
    classes: list[int]
    change: _Change
    generator: torch.Generator  # of the draw of images


def _draw_tasks(
    counts: Sequence[int], number: int, classes: int, changes: Sequence[str], pixels: int, seed: int
) -> Iterator[_Task]:
    """Yield tasks of data sets that have ``counts`` classes."""
    generator = torch.Generator().manual_seed(seed)
    decks = [_Deck(count, generator) for count in counts]
    for _ in range(number):
        dataset = int(torch.randint(len(counts), (), generator=generator))
        own = sorted(decks[dataset].deal(classes))
        change = changes[int(torch.randint(len(changes), (), generator=generator))]
        # A stream of its own, so that the size and number of images do not change the tasks that follow.
        own_seed = int(torch.randint(2**31, (), generator=generator))
        own_generator = torch.Generator().manual_seed(own_seed)
        yield _Task(dataset, own, _CHANGES[change](pixels, own_generator), own_generator)


class _Deck:
    """Deals the classes of a data set at random, none twice while there are others left."""

    def __init__(self, classes: int, generator: torch.Generator):
        self.classes = classes
        self.generator = generator
        self.left: list[int] = []

    def deal(self, number: int) -> list[int]:
        """Return ``number`` different classes."""
        dealt = self.left[:number]
        self.left = self.left[number:]
        missing = number - len(dealt)
        if missing:
            shuffled = torch.randperm(self.classes, generator=self.generator).tolist()
            others = [label for label in shuffled if label not in dealt]
            dealt = dealt + others[:missing]
            self.left = others[missing:]
        return dealt


def _images_of(task: _Task, images: Images, number: int | None, offset: int) -> Images:
    """Return the images of a task, ``number`` of them or all, with labels from ``offset`` on."""
    labels = torch.arange(len(task.classes)) + offset
    own = select_classes(images, torch.tensor(task.classes), labels)
    if number is not None:
        own = own.subset(_evenly(own.labels, number, task.generator))
    return replace(own, changes=(*own.changes, *task.change.after))


def _check_enough(pair: Pair, classes: int, train: int | None, test: int | None, dataset: str) -> None:
    """Raise ValueError if a data set has too few classes, or too few images in any of its classes."""
    known = class_count(pair[0])
    if not 1 <= classes <= known:
        raise ValueError(f"classes is {classes}; {dataset} has {known} classes, so give 1 to {known}")
    for key, number, images in (("train", train, pair[0]), ("test", test, pair[1])):
        fewest = int(images.labels.bincount(minlength=known).sort().values[:classes].sum())
        if number is not None and not classes <= number <= fewest:
            raise ValueError(
                f"{key} is {number}; {classes} classes of {dataset} may have {fewest} images, "
                f"so give {classes} to {fewest}"
            )
