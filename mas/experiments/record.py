"""The record of a cell: typed, with one JSON form that holds its version."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter

from mas.experiments.cell import Cell, CellSettings, EmbeddingSettings, ExpertSettings, TrainingSettings
from mas.experiments.provenance import Provenance
from mas.forgetting import forgetting_scores
from mas.task2vec import TaskEmbedding

VERSION = 2
"""Of the JSON form. Version 1, until 0.1.0, had no number and rows of probes without names."""

Status = Literal["finished", "diverged"]
Accuracies = list[float | None]  # by experience; None: not measured


@dataclass(frozen=True)
class ProbeRow:
    """One value that one probe measured."""

    label: str  # by which the config tells it from other probes
    probe: str  # its name in `mas.strategies.PROBES`
    data: str  # the view it looked at, such as "train"
    experience: int  # that is trained, counted from 0; in joint training, the last
    epoch: int  # of this experience that are done
    iteration: int  # the same
    part: str  # a layer, say; empty where the probe gives a single number
    value: float


@dataclass(frozen=True)
class StrengthTry:
    """One strength that was tried for one experience (``lam: {select: continual}``)."""

    strength: float  # λ
    accuracy: float  # on the experience's held-out data; NaN if the try diverged
    seconds: float


@dataclass(frozen=True)
class EmbeddingRecord:
    """The embedding of one experience, as plain data; see `mas.TaskEmbedding`."""

    task: str
    vector: list[float]
    scale: list[float]
    probe: str
    samples: int
    classes: int
    labels: str
    beta: float
    head_loss: float
    head_accuracy: float

    def embedding(self) -> TaskEmbedding:
        """Return the embedding, with tensors."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["vector"] = torch.tensor(self.vector, dtype=torch.float64)
        own["scale"] = torch.tensor(self.scale, dtype=torch.float64)
        return TaskEmbedding(**own)

    @classmethod
    def of(cls, embedding: TaskEmbedding) -> "EmbeddingRecord":
        """Return the record of an embedding."""
        own = {f.name: getattr(embedding, f.name) for f in fields(cls)}
        own["vector"] = embedding.vector.tolist()
        own["scale"] = embedding.scale.tolist()
        return cls(**own)


@dataclass
class Outcome:
    """What a cell came to: of one that trains, the result of training and testing a network on T experiences."""

    untrained: list[float] | None = None  # T accuracies before any training; None if it diverged before
    accuracy: list[Accuracies] = field(default_factory=list)  # R[t, i]: T rows of T accuracies
    tries: list[list[StrengthTry]] = field(default_factory=list)  # a list per experience
    probes: list[ProbeRow] = field(default_factory=list)
    embeddings: list[EmbeddingRecord] = field(default_factory=list)  # of a cell that embeds
    probe_accuracy: float | None = None  # of the network that it embeds by, on test data, if it was trained here
    status: Status = "finished"
    reason: str | None = None  # why it diverged
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the network was trained to the end; others enter no mean."""
        return self.status == "finished"

    def matrix(self) -> np.ndarray:
        """Return R, shape (T, T), NaN where not measured."""
        return np.array(self.accuracy, dtype=np.float64)

    def final_acc(self) -> float:
        """Return the mean accuracy over all experiences at the end; NaN if the cell diverged."""
        return forgetting_scores(self.matrix())["ACC"] if self.finished else np.nan


@dataclass(frozen=True)
class CellRecord:
    """A cell, its outcome, and what that was made with (None in records before 0.2)."""

    cell: Cell
    outcome: Outcome
    provenance: Provenance | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """The cell's label."""
        return self.cell.label

    @property
    def seed(self) -> int:
        """The cell's seed."""
        return self.cell.seed

    @property
    def strategy(self) -> str:
        """The name of a training cell's strategy."""
        name: str = self.cell.training.strategy.name
        return name

    def to_json(self) -> str:
        """Return the record as text, which `from_json` reads."""
        head = {"version": VERSION, "label": self.label, "seed": self.seed, "settings": self.cell.settings.plain()}
        outcome = asdict(self.outcome)
        if not outcome["embeddings"]:  # most cells embed nothing
            del outcome["embeddings"], outcome["probe_accuracy"]
        made_with = {"provenance": asdict(self.provenance)} if self.provenance else {}
        return json.dumps(head | outcome | made_with, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "CellRecord":
        """Return the record that `to_json` wrote.

        Raises:
            OldFormatError: it was written by another version of this library.
            ValueError: the text is no such record.
        """
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"a {type(data).__name__} in place of a map")
        if data.get("version") != VERSION:
            raise OldFormatError(f"is of format {data.get('version', 1)}; this version of mas reads format {VERSION}")
        settings = _settings(data["settings"])
        data.setdefault("embeddings", [])
        data.setdefault("probe_accuracy", None)
        outcome = _OUTCOMES.validate_python({key: data[key] for key in _OUTCOME_KEYS})
        provenance = _PROVENANCES.validate_python(data.get("provenance"))
        return cls(Cell(data["label"], data["seed"], settings), outcome, provenance)


def outcome_from_plain(data: Mapping[str, Any]) -> Outcome:
    """Return an outcome from plain data, as of `dataclasses.asdict`."""
    return _OUTCOMES.validate_python(dict(data))


class OldFormatError(ValueError):
    """A file of another format version."""


def finished(records: Sequence[CellRecord]) -> list[CellRecord]:
    """Return the records whose networks were trained to the end."""
    return [record for record in records if record.outcome.finished]


def _settings(data: Any) -> CellSettings:
    """Return settings from plain data; those of a training cell name no job."""
    job = data.get("job", "training") if isinstance(data, dict) else "training"
    if job not in _SETTINGS:
        raise ValueError(f"settings: found job {job!r}; known are {', '.join(_SETTINGS)}")
    return _SETTINGS[job].model_validate(data)


_SETTINGS: dict[str, type[CellSettings]] = {
    "training": TrainingSettings,
    "embedding": EmbeddingSettings,
    "experts": ExpertSettings,
}
_OUTCOMES: TypeAdapter[Outcome] = TypeAdapter(Outcome)
_PROVENANCES: TypeAdapter[Provenance | None] = TypeAdapter(Provenance | None)
_OUTCOME_KEYS: list[Any] = [f.name for f in fields(Outcome)]
