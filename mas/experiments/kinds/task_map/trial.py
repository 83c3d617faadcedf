"""Build the parts of a config once, and count its tasks and their images."""

from collections.abc import Sequence

from mas.experiments.avalanche_types import Benchmark
from mas.experiments.cell import CellSettings
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.experiments.kinds.task_map.config import TaskMap
from mas.experiments.probe_network import shape_of
from mas.experiments.trial import try_benchmark, try_probe_network, try_tasks


def trial(config: TaskMap, every: Sequence[CellSettings], source: Source) -> None:
    """Raise UserError if a stream or the probe network cannot be built, or if the tasks do not make a map."""
    benchmarks = []
    for number, stream in enumerate(config.streams):
        benchmark = try_benchmark(stream, ("streams", number), source)
        try_tasks(benchmark, config.embedding, ("streams", number), source)
        benchmarks.append(benchmark)
    count = sum(len(benchmark.train_stream) for benchmark in benchmarks)
    if count < 2:
        raise UserError(f"{source.where(('streams',))}: found {count} task; a map needs at least 2: add a stream")
    _check_shapes(config, benchmarks, source)
    try_probe_network(config.probe_network, benchmarks[0], ("probe_network",), source)


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
