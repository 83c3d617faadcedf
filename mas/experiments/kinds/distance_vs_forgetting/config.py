"""What a config of ``experiment: distance_vs_forgetting`` may say."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mas.experiments.config.checks import check_number_of_runs, check_titles
from mas.experiments.config.embedding import EmbeddingOptions, ProbeNetwork
from mas.experiments.config.schema import AnyStrategy, StrategyOptions, TrainingExperiment, each_once
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.task2vec import DISTANCES

EMBEDDINGS = "task2vec"
"""The label of the cells that embed."""

NAIVE = "naive"
FROM_SCRATCH = "from_scratch"
DistanceName: Any = Literal[tuple(DISTANCES)]


class DistanceVsForgetting(TrainingExperiment):
    """``experiment: distance_vs_forgetting``: hold the distances between tasks against what is forgotten."""

    experiment: Literal["distance_vs_forgetting"]
    strategies: Annotated[list[AnyStrategy], Field(min_length=1)]  # naive is needed
    probe_network: ProbeNetwork
    embedding: EmbeddingOptions = EmbeddingOptions()
    distances: Annotated[list[DistanceName], Field(min_length=1), AfterValidator(each_once)] = Field(
        default=list(DISTANCES)
    )


def check(config: DistanceVsForgetting, source: Source) -> None:
    """Raise UserError for what the types cannot say."""
    check_number_of_runs(("strategies",), len(config.strategies), source)
    check_titles(("strategies",), [strategy.title() for strategy in config.strategies], source)
    for number, strategy in enumerate(config.strategies):
        _check_strategy(strategy, f"{source.where(('strategies', number))}: ")
    for name in (NAIVE, FROM_SCRATCH):
        _check_reference(name, config.strategies, source)
    if config.save_model:
        where = source.where(("save_model",))
        raise UserError(f"{where}: found true; allowed: false, since cells that embed have no weights")


def _check_strategy(strategy: StrategyOptions, where: str) -> None:
    if strategy.title().casefold() == EMBEDDINGS:
        raise UserError(f"{where}found the label {EMBEDDINGS!r}, which the embeddings have; give another label")
    if strategy.name == "joint":
        raise UserError(f"{where}joint trains all experiences at once and forgets none; leave it out")
    if strategy.continual_choice is not None:
        raise UserError(f"{where}found lam to choose continually; allowed: a number")


def _check_reference(name: str, strategies: Sequence[StrategyOptions], source: Source) -> None:
    """Naive and from_scratch are what others are compared with, each under its own name; only naive must be listed."""
    where = source.where(("strategies",))
    titles = [strategy.title() for strategy in strategies if strategy.name == name]
    if name == NAIVE and not titles:
        raise UserError(f"{where}: found no {name}, with which protection is compared; add - {{name: {name}}}")
    if titles not in ([], [name]):
        raise UserError(f"{where}: found {name} as {', '.join(titles)}; allowed: once, without a label")
    if any(strategy.title().casefold() == name and strategy.name != name for strategy in strategies):
        raise UserError(f"{where}: found the label {name!r}; allowed: for the strategy {name} alone")
