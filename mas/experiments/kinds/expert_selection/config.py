"""What a config of ``experiment: expert_selection`` may say."""

from typing import Annotated, Any, Literal

from pydantic import Field

from mas.annotations import Count
from mas.experiments.config.checks import check_number_of_runs, check_one_length
from mas.experiments.config.embedding import EmbeddingOptions, ProbeNetwork
from mas.experiments.config.experts import TransferOptions
from mas.experiments.config.schema import AnyStream, Experiment, Seeds, Training
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.task2vec import DISTANCES

DistanceName: Any = Literal[tuple(DISTANCES)]


class ExpertSelection(Experiment):
    """``experiment: expert_selection``: which expert to start a new task from."""

    experiment: Literal["expert_selection"]
    benchmark: AnyStream  # each experience is a task
    experts: Count  # the first so many experiences have an expert each
    probe_network: ProbeNetwork  # embeds the tasks; experts begin with its weights
    training: Training = Training()  # of each expert, with a new head
    transfer: TransferOptions = TransferOptions()  # to a new task
    embedding: EmbeddingOptions = EmbeddingOptions()  # per_class is that of transfer where it is not set
    distance: DistanceName = "asymmetric"  # that is drawn; every distance is in the tables
    seeds: Annotated[int, Field(gt=0, le=10_000)] | Seeds = 1


def check(config: ExpertSelection, source: Source) -> None:
    """Raise UserError for what the types cannot say."""
    check_number_of_runs(("experts",), config.experts, source)
    check_one_length(config.training.epochs, source)
    if config.experts < 2:
        where = source.where(("experts",))
        raise UserError(f"{where}: found {config.experts}; allowed: 2 or more, to choose from")
    if config.embedding.data != "train":
        where = source.where(("embedding", "data"))
        raise UserError(f"{where}: found {config.embedding.data}, on which experts are tested; allowed: train")
