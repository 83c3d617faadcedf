"""Build the parts of a config once."""

from collections.abc import Sequence

from mas.experiments.cell import CellSettings
from mas.experiments.config.yaml_source import Source
from mas.experiments.kinds.task_map.config import TaskMap
from mas.experiments.trial import try_benchmark, try_probe_network


def trial(config: TaskMap, every: Sequence[CellSettings], source: Source) -> None:
    """Raise UserError if a stream or the probe network cannot be built."""
    for number, stream in enumerate(config.streams):
        benchmark = try_benchmark(stream, ("streams", number), source)
        try_probe_network(config.probe_network, benchmark, ("probe_network",), source)
