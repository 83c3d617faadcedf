"""What a config of ``experiment: consolidated_deficit`` may say."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mas.annotations import Count
from mas.experiments.config.checks import check_number_of_runs, check_one_length, check_titles
from mas.experiments.config.schema import (
    AnyDeficit,
    AnyProbe,
    AnyProtection,
    ProbeOptions,
    TrainingExperiment,
    WholeStream,
    each_once,
    probe_options,
)
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.imports import IMPORT

SEES_ALL_AT_ONCE = ("joint", "cumulative")
_VIEWS = {"train", "test"}


def _default_probes() -> list[ProbeOptions]:
    return [probe_options("fisher_trace")]


class ConsolidatedDeficit(TrainingExperiment):
    """``experiment: consolidated_deficit``: protect what impaired epochs teach while clear ones follow."""

    experiment: Literal["consolidated_deficit"]
    benchmark: WholeStream
    deficit: AnyDeficit
    lengths: Annotated[
        list[Count], Field(min_length=1), AfterValidator(each_once)
    ]  # impaired epochs; training.epochs clear ones follow
    strategies: Annotated[list[AnyProtection], Field(min_length=1)]
    probes: list[AnyProbe] = Field(default_factory=_default_probes)


def check(config: ConsolidatedDeficit, source: Source) -> None:
    """Raise UserError for what the types cannot say."""
    strengths = [strategy.arguments().get("lam") for strategy in config.strategies]
    protections = sum(len(lam) if isinstance(lam, list) else 1 for lam in strengths)
    check_number_of_runs(("lengths",), len(config.lengths) * protections, source)
    check_titles(("strategies",), [strategy.title() for strategy in config.strategies], source)
    _check_stream(config, source)
    _check_strategies(config, source)
    _check_strengths(config, source)
    check_one_length(config.training.epochs, source)
    check_titles(("probes",), [probe.title() for probe in config.probes], source)
    _check_views(config, source)


def _check_stream(config: ConsolidatedDeficit, source: Source) -> None:
    """A stream of the user's own cannot be shown twice, impaired and clear."""
    if config.benchmark.stream == IMPORT:
        where = source.where(("benchmark", "stream"))
        raise UserError(f"{where}: found 'import'; allowed: whole, with a dataset of your own if need be")


def _check_strategies(config: ConsolidatedDeficit, source: Source) -> None:
    for number, strategy in enumerate(config.strategies):
        if strategy.name in SEES_ALL_AT_ONCE:
            where = source.where(("strategies", number, "name"))
            raise UserError(f"{where}: found {strategy.name!r}, which sees all data at once; allowed: any other")


def _check_strengths(config: ConsolidatedDeficit, source: Source) -> None:
    for number, strategy in enumerate(config.strategies):
        strengths = strategy.arguments().get("lam")
        told = [f"{lam:g}" for lam in strengths] if isinstance(strengths, list) else []
        if len(set(told)) < len(told):
            where = source.where(("strategies", number, "lam"))
            raise UserError(f"{where}: found {strengths}; allowed: each strength once, as told by six digits")


def _check_views(config: ConsolidatedDeficit, source: Source) -> None:
    for number, probe in enumerate(config.probes):
        if set(probe.data) - _VIEWS:
            where = source.where(("probes", number, "data"))
            allowed = "train, test, which are impaired in the first experience"
            raise UserError(f"{where}: found {probe.data}; allowed: {allowed}")
