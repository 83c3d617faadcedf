"""Which networks are trained: one for each strategy."""

from mas.experiments.cell import SelectionMade, settings_for
from mas.experiments.config.schema import StrategyOptions
from mas.experiments.kind import PlannedRun
from mas.experiments.kinds.forgetting.config import Forgetting


def plan(config: Forgetting) -> list[PlannedRun]:
    """Return a run for each strategy, in the config's order."""
    return [_run(config, strategy) for strategy in config.strategies]


def _run(config: Forgetting, strategy: StrategyOptions) -> PlannedRun:
    continual = strategy.continual_choice is not None
    deficit = config.deficit and config.deficit.model_copy(update={"label": None})
    settings = settings_for(
        config,
        strategy=strategy,
        deficit=deficit,
        probes=config.probes,
        selection=SelectionMade(validation=config.selection.validation) if continual else None,
    )
    return PlannedRun(strategy.title(), settings)
