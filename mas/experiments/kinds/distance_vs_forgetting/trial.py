"""Build the parts of a config once."""

from collections.abc import Sequence

from mas.experiments.cell import CellSettings
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.experiments.kinds.distance_vs_forgetting.config import DistanceVsForgetting
from mas.experiments.trial import try_benchmark, try_probe_network, try_tasks, try_training


def trial(config: DistanceVsForgetting, every: Sequence[CellSettings], source: Source) -> None:
    """Raise UserError if a part of a config cannot be built, or if its stream has a single experience."""
    try_training(config, every, source)
    benchmark = try_benchmark(config.benchmark, ("benchmark",), source)
    if len(benchmark.train_stream) < 2:
        where = source.where(("benchmark",))
        raise UserError(f"{where}: found one experience, which leaves nothing to forget; allowed: two or more")
    try_tasks(benchmark, config.embedding, ("benchmark",), source)
    try_probe_network(config.probe_network, benchmark, ("probe_network",), source)
