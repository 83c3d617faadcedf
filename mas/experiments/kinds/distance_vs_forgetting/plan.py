"""Which cells there are: a training cell for each strategy, and one that embeds the same stream."""

from mas.experiments.cell import EmbeddingSettings, settings_for
from mas.experiments.config.schema import STRATEGY_MODELS, StrategyOptions
from mas.experiments.kind import PlannedRun
from mas.experiments.kinds.distance_vs_forgetting.config import EMBEDDINGS, FROM_SCRATCH, DistanceVsForgetting


def plan(config: DistanceVsForgetting) -> list[PlannedRun]:
    """Return a run for each strategy, in the config's order, then from_scratch if it is missing, and the embeddings."""
    trained = [
        PlannedRun(strategy.title(), settings_for(config, strategy=strategy)) for strategy in all_strategies(config)
    ]
    return [*trained, PlannedRun(EMBEDDINGS, _embedding(config))]


def all_strategies(config: DistanceVsForgetting) -> list[StrategyOptions]:
    """Return the strategies of a config, and from_scratch, which transfer is measured against."""
    if any(strategy.name == FROM_SCRATCH for strategy in config.strategies):
        return config.strategies
    return [*config.strategies, STRATEGY_MODELS[FROM_SCRATCH]()]


def _embedding(config: DistanceVsForgetting) -> EmbeddingSettings:
    """Return the settings of the cells that embed; they draw their stream from the seed, as training cells do."""
    return EmbeddingSettings(
        experiment=config.experiment,
        benchmark=config.benchmark,
        probe_network=config.probe_network,
        embedding=config.embedding,
        stream_seed=None,
    )
