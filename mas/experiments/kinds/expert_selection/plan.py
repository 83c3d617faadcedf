"""One cell embeds the tasks, one measures the probe network itself, and one each expert, all on the same tasks."""

from mas.experiments.cell import CellTraining, EmbeddingSettings, ExpertSettings
from mas.experiments.config.embedding import EmbeddingOptions
from mas.experiments.kind import PlannedRun
from mas.experiments.kinds.expert_selection.config import ExpertSelection

EMBEDDING = "task2vec"
GENERIC = "probe_network"


def plan(config: ExpertSelection) -> list[PlannedRun]:
    """Return the run that embeds, that of the generic network, and one for each expert."""
    embedding = EmbeddingSettings(
        experiment=config.experiment,
        benchmark=config.benchmark,
        probe_network=config.probe_network,
        embedding=_embedding(config),
        stream_seed=0,
    )
    experts = [PlannedRun(expert_label(number), _expert(config, number)) for number in range(config.experts)]
    return [PlannedRun(EMBEDDING, embedding), PlannedRun(GENERIC, _expert(config, None)), *experts]


def expert_label(number: int) -> str:
    """Return the label of the run of an expert, by the experience it is trained on."""
    return f"expert-{number}"


def _expert(config: ExpertSelection, number: int | None) -> ExpertSettings:
    return ExpertSettings(
        experiment=config.experiment,
        benchmark=config.benchmark,
        probe_network=config.probe_network,
        expert=number,
        training=CellTraining(**config.training.model_dump()),
        transfer=config.transfer,
        stream_seed=0,
    )


def _embedding(config: ExpertSelection) -> EmbeddingOptions:
    """Return how tasks are embedded: from no more images than experts are adapted with."""
    given = [limit for limit in (config.embedding.per_class, config.transfer.per_class) if limit is not None]
    return config.embedding.model_copy(update={"per_class": min(given, default=None)})
