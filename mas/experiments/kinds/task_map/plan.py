"""Which streams are embedded: all of them, by the same network, each task the same for every seed."""

from mas.experiments.cell import EmbeddingSettings
from mas.experiments.config.schema import STREAM_MODELS
from mas.experiments.kind import PlannedRun
from mas.experiments.kinds.task_map.config import LabelledStream, TaskMap


def plan(config: TaskMap) -> list[PlannedRun]:
    """Return a run for each stream, in the config's order."""
    return [PlannedRun(stream.title(), _settings(config, stream)) for stream in config.streams]


def _settings(config: TaskMap, stream: LabelledStream) -> EmbeddingSettings:
    options = stream.model_dump(mode="json", exclude={"label"})
    return EmbeddingSettings(
        experiment=config.experiment,
        benchmark=STREAM_MODELS[stream.stream].model_validate(options),
        probe_network=config.probe_network,
        embedding=config.embedding,
        stream_seed=0,
    )
