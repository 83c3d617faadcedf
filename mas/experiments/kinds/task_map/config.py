"""What a config of ``experiment: task_map`` may say."""

from typing import Annotated, Any, Literal

from pydantic import Field

from mas.benchmarks import STREAMS
from mas.experiments.config.checks import check_number_of_runs, check_titles
from mas.experiments.config.embedding import DRAWN, EmbeddingOptions, ProbeNetwork
from mas.experiments.config.schema import MAX_SEEDS, Experiment, Label, Seeds, StreamOptions, one_of, stream_option
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.experiments.options import models_of
from mas.task2vec import DISTANCES

DistanceName: Any = Literal[tuple(DISTANCES)]


class LabelledStream(StreamOptions):
    """A stream whose experiences are embedded."""

    label: Label | None = None

    def title(self) -> str:
        """Return the label, or else the stream's name and that of its data set."""
        if self.label:
            return self.label
        specs = self.datasets_used().values()
        names = [spec if isinstance(spec, str) else str(spec.get("name")) for spec in specs]
        return "-".join([self.stream, *names[:1]])


LABELLED_STREAMS = models_of(STREAMS, "stream", leave_out={"seed"}, base=LabelledStream, typed=stream_option)
AnyLabelledStream: Any = one_of(LABELLED_STREAMS, "stream", "split")


class TaskMap(Experiment):
    """``experiment: task_map``: embed tasks by Task2Vec, and show which are alike."""

    experiment: Literal["task_map"]
    streams: Annotated[list[AnyLabelledStream], Field(min_length=1)]  # each experience is a task
    probe_network: ProbeNetwork
    embedding: EmbeddingOptions = EmbeddingOptions()
    distance: DistanceName = "cosine"  # that is drawn; every distance is in the tables
    seeds: Annotated[int, Field(gt=0, le=MAX_SEEDS)] | Seeds = 1  # each embeds every task once


def check(config: TaskMap, source: Source) -> None:
    """Raise UserError for what the types cannot say."""
    check_number_of_runs(("streams",), len(config.streams), source)
    check_titles(("streams",), [stream.title() for stream in config.streams], source)
    _check_seeds(config, source)


def same_images(config: TaskMap) -> list[tuple[int, int]]:
    """Return the pairs of seeds that embed the same images of each task: each seed with the first one like it."""
    if config.embedding.per_class is not None:
        return []
    first_of_part: dict[int, int] = {}
    pairs = []
    for seed in config.seed_list():
        first = first_of_part.setdefault(seed % config.embedding.parts, seed)
        if first != seed:
            pairs.append((first, seed))
    return pairs


def _check_seeds(config: TaskMap, source: Source) -> None:
    """Raise UserError if two seeds would give equal embeddings."""
    pairs = same_images(config)
    if pairs and config.embedding.labels not in DRAWN:
        first, second = pairs[0]
        raise UserError(
            f"{source.where(('seeds',))}: found {first} and {second}, which embed the same images with labels: "
            f"{config.embedding.labels}, and so equally; give embedding.parts: {len(config.seed_list())}, or per_class"
        )
