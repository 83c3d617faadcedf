"""Which networks are trained: every strategy and strength at every length of the deficit, and a clear reference."""

from collections.abc import Iterator
from dataclasses import dataclass

from mas.experiments.cell import TrainingSettings, settings_for
from mas.experiments.config.schema import STRATEGY_MODELS, STREAM_MODELS, StrategyOptions, StreamOptions
from mas.experiments.kind import PlannedRun
from mas.experiments.kinds.consolidated_deficit.config import ConsolidatedDeficit

REFERENCE = "clear"


@dataclass(frozen=True)
class Variant:
    """One strategy with one strength, after a deficit of one length."""

    title: str  # of the strategy in the config
    strategy: StrategyOptions
    strength: float | None  # λ, if the strategy has one
    length: int  # of the deficit, in epochs

    @property
    def label(self) -> str:
        """The label of the run's results."""
        strength = "" if self.strength is None else f"-{self.strength:g}"
        return f"{self.title}{strength}_{self.length}"

    @property
    def is_unprotected(self) -> bool:
        """Whether nothing is protected: others of its length are compared with it."""
        return self.strategy.name == "naive" or self.strength == 0


def plan(config: ConsolidatedDeficit) -> list[PlannedRun]:
    """Return every run; the reference, without a deficit, comes first."""
    naive = STRATEGY_MODELS["naive"]()
    clear = settings_for(config, strategy=naive, probes=config.probes)
    return [PlannedRun(REFERENCE, clear), *(PlannedRun(v.label, _settings(config, v)) for v in variants(config))]


def variants(config: ConsolidatedDeficit) -> list[Variant]:
    """Return every run but the reference."""
    return list(_variants(config))


def _variants(config: ConsolidatedDeficit) -> Iterator[Variant]:
    for length in config.lengths:
        for protection in config.strategies:
            for one in protection.each_strength():
                options = one.model_dump(mode="json", exclude={"label"})
                strategy = STRATEGY_MODELS[one.name].model_validate(options)
                yield Variant(protection.title(), strategy, options.get("lam"), length)  # type: ignore[arg-type]


def _settings(config: ConsolidatedDeficit, variant: Variant) -> TrainingSettings:
    return settings_for(
        config,
        strategy=variant.strategy,
        benchmark=_deficit_then_clear(config),
        epochs=[variant.length, config.training.epochs_of(0)],
        probes=config.probes,
    )


def _deficit_then_clear(config: ConsolidatedDeficit) -> StreamOptions:
    """Return the config's stream as two experiences, impaired and clear."""
    options = config.benchmark.arguments() | {"stream": "deficit_then_clear", "deficit": config.deficit.spec()}
    return STREAM_MODELS["deficit_then_clear"].model_validate(options)  # type: ignore[return-value]
