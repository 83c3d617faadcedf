"""Build the parts of a config once."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mas.experiments.build import optimizer_for
from mas.experiments.cell import CellSettings, CellTraining
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.experiments.kinds.expert_selection.config import ExpertSelection
from mas.experiments.trial import errors_at, try_benchmark, try_probe_network, try_tasks


def trial(config: ExpertSelection, every: Sequence[CellSettings], source: Source) -> None:
    """Raise UserError if the stream, the probe network or the training of experts cannot be built, or do not fit."""
    benchmark = try_benchmark(config.benchmark, ("benchmark",), source)
    _check_tasks(config, benchmark, source)
    try_probe_network(config.probe_network, benchmark, ("probe_network",), source)
    with errors_at(source, ("training", "optimizer")):
        optimizer_for(nn.Linear(2, 2), config.training)
    training = CellTraining(**config.training.model_dump())
    with errors_at(source, ("training", "schedule")):
        training.rate_factor(training.longest_epochs() - 1)


def _check_tasks(config: ExpertSelection, benchmark: Any, source: Source) -> None:
    tasks = list(benchmark.train_stream)
    if config.experts > len(tasks):
        where = source.where(("experts",))
        raise UserError(
            f"{where}: found {config.experts}; the stream has {len(tasks)} experiences; allowed: 2 to {len(tasks)}"
        )
    try_tasks(benchmark, config.embedding, ("benchmark",), source)
