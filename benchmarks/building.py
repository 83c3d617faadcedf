"""What the streams are built with: loading and normalising, choosing classes, drawing images, benchmarks of parts."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Literal, get_args

import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from torch import Tensor

from mas.benchmarks.changes import Padded, Resized
from mas.benchmarks.datasets import DatasetSpec, hold_out, load_dataset
from mas.benchmarks.images import AUGMENTATIONS, Images, Pair, Transform, as_dataset, channel_statistics

Scenario = Literal["task", "domain", "class"]
Augment = Literal["none", "flip", "crop", "crop_flip"]


def prepare(
    dataset: DatasetSpec,
    changes: tuple[Transform, ...] = (),
    *,
    validation: float,
    normalize: bool,
    augment: str = "none",
) -> Pair:
    """Load a data set and attach what is to be done to its batches."""
    check_name("augment", augment, tuple(AUGMENTATIONS))
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


def make_benchmark(parts: Sequence[Pair], names: Sequence[str], *, tasks: bool) -> CLScenario:
    """Return an Avalanche benchmark.

    Args:
        parts: the (train, test) images of each experience.
        names: of the experiences, see `mas.benchmarks.experience_names`.
        tasks: whether each experience is a task of its own, whose number is known at test.
    """
    train = []
    test = []
    for number, (name, (train_images, test_images)) in enumerate(zip(names, parts, strict=True)):
        task = number if tasks else 0
        train.append(as_dataset(replace(train_images, name=name), task))
        test.append(as_dataset(replace(test_images, name=name), task))
    plain = benchmark_from_datasets(train=train, test=test)
    benchmark = with_task_labels(with_classes_timeline(plain))
    for stream in benchmark.streams.values():
        stream.benchmark = benchmark  # Avalanche leaves it out; an experience finds its test data through it
    return benchmark


def select_classes(images: Images, classes: Tensor, new_labels: Tensor) -> Images:
    """Return the images of some classes, with new labels (the names of the classes belong to the old ones)."""
    size = int(max(images.labels.max(), classes.max())) + 1
    new_label = torch.full((size,), -1)
    new_label[classes] = new_labels
    labels = new_label[images.labels]
    kept = (labels >= 0).nonzero()[:, 0]
    return replace(images.subset(kept), labels=labels[kept], class_names=None)


def padding(pixels: int) -> tuple[Transform, ...]:
    """Return the change that adds black pixels on each side; none for 0."""
    return (Padded(pixels),) if pixels else ()


def brought_together(datasets: Sequence[DatasetSpec], size: int | None) -> Resized:
    """Return the change that gives the images of all data sets one number of channels, and a size if it is not None."""
    channels = max(load_dataset(dataset)[0].pixels.shape[1] for dataset in datasets)
    return Resized(channels, size)


def check_shapes(parts: Sequence[Pair]) -> None:
    """Raise ValueError if images of several data sets differ in shape."""
    shapes = {tuple(train[0][0].shape) for train, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"images of the data sets have the shapes {sorted(shapes)}; give size to bring them to one")


def class_count(images: Images) -> int:
    """Return the number of classes: labels count from 0."""
    return int(images.labels.max()) + 1


def check_scenario(scenario: str) -> None:
    """Raise ValueError if a scenario is none of task, domain and class."""
    check_name("scenario", scenario, get_args(Scenario))


def check_name(key: str, name: str, known: Sequence[str]) -> None:
    """Raise ValueError if the value of an option is none of the known names."""
    if name not in known:
        raise ValueError(f"{key} is {name!r}; known are {', '.join(known)}")
