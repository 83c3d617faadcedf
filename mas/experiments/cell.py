"""A cell: one piece of work, such as training and testing one network, with all settings that it needs."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field

from mas.annotations import NonNegativeInt
from mas.experiments.config.embedding import EmbeddingOptions, ProbeNetwork
from mas.experiments.config.experts import TransferOptions
from mas.experiments.config.schema import (
    AnyModel,
    AnyProbe,
    AnyScheduledDeficit,
    AnyStrategy,
    AnyStream,
    ProbeOptions,
    Training,
    TrainingExperiment,
)
from mas.experiments.options import Options

THREADS = 1  # of torch, in each cell: the order of sums, and so the last bit, depends on their number


class CellTraining(Training):
    """How a cell is trained."""

    first_epoch: int = 0  # where in the learning rate's schedule it begins: the lr-matched control

    def rate_factor(self, epoch: int) -> float:
        """Return what the learning rate is multiplied by in an epoch of an experience."""
        if self.schedule is None:
            return 1.0
        factor: float = self.schedule.factor(epoch + self.first_epoch, self.lr)
        return factor


class SelectionMade(Options):
    """How values of a cell were chosen."""

    validation: float  # share of the training data held out
    seeds: list[int] = Field(default=[])
    options: dict[str, list[Any] | dict[str, Any]] = Field(default={})  # by option; empty where λ is chosen continually


class CellSettings(Options):
    """What a cell works on. Two cells with equal settings and seeds give equal results."""

    experiment: str
    benchmark: AnyStream
    selection: SelectionMade | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain data: the classes of its parts are made at run time, and workers make their own."""
        return type(self).model_validate, (self.model_dump(mode="json"),)

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain data.

        Settings that are None or empty are left out, so that results stay valid when settings are added.
        """
        data = self.model_dump(mode="json", exclude_none=True)
        return {key: value for key, value in data.items() if value != []}

    def describe(self) -> str:
        """Return in one line what distinguishes the cell from others of its config."""
        return ", ".join(f"{key}={value}" for key, value in self._distinguishing().items())

    def held_out(self, validation: float) -> Self:
        """Return the settings of a try: tested on held-out training data, with nothing else measured."""
        benchmark = self.benchmark.holding_out(validation)
        return self.model_copy(update={"benchmark": benchmark, "selection": None})

    def _distinguishing(self) -> dict[str, Any]:
        if self.selection is None:
            return {}
        return {option: _to_choose(values) for option, values in self.selection.options.items()}


class TrainingSettings(CellSettings):
    """What a network is trained with along a stream."""

    model: AnyModel
    training: CellTraining
    strategy: AnyStrategy
    deficit: AnyScheduledDeficit | None = None
    probes: list[AnyProbe] = Field(default=[])

    def held_out(self, validation: float) -> Self:
        """Return the settings of a try: tested on held-out training data, with nothing else measured."""
        return super().held_out(validation).model_copy(update={"probes": []})

    def _distinguishing(self) -> dict[str, Any]:
        strategy = self.strategy.model_dump(exclude={"label"}, exclude_none=True)
        deficit = self.deficit.model_dump(exclude={"name", "label", "function"}) if self.deficit else {}
        return {**strategy, **deficit, **super()._distinguishing()}


class EmbeddingSettings(CellSettings):
    """How the experiences of a stream are embedded as tasks."""

    job: Literal["embedding"] = "embedding"
    probe_network: ProbeNetwork
    embedding: EmbeddingOptions
    stream_seed: NonNegativeInt | None = None  # None: the stream is drawn from the cell's seed

    def _distinguishing(self) -> dict[str, Any]:
        stream = {"stream": self.benchmark.stream, **self.benchmark.arguments()}
        return {**stream, "labels": self.embedding.labels}


class ExpertSettings(CellSettings):
    """How one expert is trained, and adapted to each experience of a stream."""

    job: Literal["experts"] = "experts"
    probe_network: ProbeNetwork  # where the expert begins
    expert: NonNegativeInt | None = None  # the experience it is trained on; None: the probe network as it is
    training: CellTraining | None = None  # of the expert
    transfer: TransferOptions
    stream_seed: NonNegativeInt | None = None  # None: the stream is drawn from the cell's seed

    def _distinguishing(self) -> dict[str, Any]:
        return {"trained_on": "nothing more" if self.expert is None else self.expert}


def settings_for(
    config: TrainingExperiment,
    *,
    strategy: AnyStrategy,
    benchmark: AnyStream | None = None,
    epochs: int | list[int] | None = None,
    first_epoch: int = 0,
    deficit: AnyScheduledDeficit | None = None,
    probes: list[ProbeOptions] | None = None,
    selection: SelectionMade | None = None,
) -> TrainingSettings:
    """Return the settings of a training cell of ``config``; arguments that are given take the place of the config's."""
    changed = {"epochs": epochs or config.training.epochs, "first_epoch": first_epoch}
    return TrainingSettings(
        experiment=config.experiment,
        benchmark=benchmark or config.benchmark,
        model=config.model,
        training=CellTraining(**config.training.model_dump() | changed),
        strategy=strategy.model_copy(update={"label": None}),
        deficit=deficit,
        probes=probes or [],
        selection=selection,
    )


def _to_choose(values: list[Any] | dict[str, Any]) -> str:
    """Return in words what a value is chosen from: a list or a range."""
    return f"{values['low']} to {values['high']}" if isinstance(values, dict) else f"one of {values}"


@dataclass(frozen=True)
class Cell:
    """One piece of work with one seed. It knows nothing of other cells, so any process may do it."""

    label: str
    seed: int
    settings: CellSettings

    @property
    def id(self) -> str:
        """A name for files: of the label and the seed."""
        return f"{file_name(self.label)}-seed{self.seed}"

    @property
    def training(self) -> TrainingSettings:
        """The settings of a training cell.

        Raises:
            TypeError: the cell does something else.
        """
        if not isinstance(self.settings, TrainingSettings):
            raise TypeError(f"{self.id} trains no network: its settings are {type(self.settings).__name__}")
        return self.settings


def file_name(label: str) -> str:
    """Return a label that can name a file; one that is long or has odd characters ends in a digest.

    >>> file_name("mas~lam=0.1"), file_name("mas~data=a/b")
    ('mas~lam=0.1', 'mas~data=a_b-71f0bf6c')
    """
    if re.fullmatch(r"[\w.+=,~-]{1,150}", label, re.ASCII):
        return label
    plain = re.sub(r"[^\w.+=,~-]+", "_", label, flags=re.ASCII)
    return f"{plain[:80]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
