"""Build the parts of a config once, and count its tasks and their images."""

from collections.abc import Sequence

import torch

from mas.benchmarks import experience_names
from mas.experiments.avalanche_types import Benchmark
from mas.experiments.cell import CellSettings
from mas.experiments.config.yaml_source import Source
from mas.experiments.embedding import experiences_of
from mas.experiments.errors import UserError
from mas.experiments.kinds.task_map.config import TaskMap
from mas.experiments.probe_network import shape_of
from mas.experiments.trial import try_benchmark, try_probe_network


def trial(config: TaskMap, every: Sequence[CellSettings], source: Source) -> None:
    """Raise UserError if a stream or the probe network cannot be built, or if the tasks do not make a map."""
    benchmarks = []
    for number, stream in enumerate(config.streams):
        benchmark = try_benchmark(stream, ("streams", number), source)
        _check_classes(config, benchmark, number, source)
        benchmarks.append(benchmark)
    count = sum(len(benchmark.train_stream) for benchmark in benchmarks)
    if count < 2:
        raise UserError(f"{source.where(('streams',))}: found {count} task; a map needs at least 2: add a stream")
    _check_shapes(config, benchmarks, source)
    try_probe_network(config.probe_network, benchmarks[0], ("probe_network",), source)


def _check_classes(config: TaskMap, benchmark: Benchmark, number: int, source: Source) -> None:
    """Raise UserError if a task has one class, or a class with too few images for the parts."""
    experiences = experiences_of(benchmark, config.embedding.data)
    for name, experience in zip(experience_names(benchmark), experiences, strict=True):
        labels, counts = torch.as_tensor(list(experience.dataset.targets)).unique(return_counts=True)
        if len(labels) < 2:
            where = source.where(("streams", number))
            raise UserError(f"{where}: found task {name!r} with one class; a task to embed has two classes or more")
        fewest = int(counts.min())
        if fewest < config.embedding.parts:
            where = source.where(("embedding", "parts"))
            raise UserError(
                f"{where}: found {config.embedding.parts}, but a class of task {name!r} has {fewest} "
                f"{config.embedding.data} images; allowed: at most {fewest}"
            )


def _check_shapes(config: TaskMap, benchmarks: Sequence[Benchmark], source: Source) -> None:
    """Raise UserError if images differ in shape, and there is no trained network whose images they are resized to."""
    if config.probe_network.training is not None:
        return
    first, *others = [shape_of(benchmark) for benchmark in benchmarks]
    for number, shape in enumerate(others, start=1):
        if shape != first:
            where = source.where(("streams", number))
            raise UserError(
                f"{where}: found images of shape {shape}, and {first} in the first stream; "
                "give datasets of one shape, or a probe_network with benchmark and training"
            )
