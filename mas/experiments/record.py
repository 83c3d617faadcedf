"""The record of a cell: typed, with one JSON form that holds its version."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from mas.experiments.cell import Cell, CellSettings
from mas.forgetting import forgetting_scores

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


@dataclass
class Outcome:
    """The result of training and testing one network on T experiences."""

    untrained: list[float] | None = None  # T accuracies before any training; None if it diverged before
    accuracy: list[Accuracies] = field(default_factory=list)  # R[t, i]: T rows of T accuracies
    tries: list[list[StrengthTry]] = field(default_factory=list)  # a list per experience
    probes: list[ProbeRow] = field(default_factory=list)
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
    """A cell and its outcome."""

    cell: Cell
    outcome: Outcome

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
        """The name of the cell's strategy."""
        name: str = self.cell.settings.strategy.name
        return name

    def to_json(self) -> str:
        """Return the record as text, which `from_json` reads."""
        head = {"version": VERSION, "label": self.label, "seed": self.seed, "settings": self.cell.settings.plain()}
        return json.dumps(head | asdict(self.outcome), indent=2) + "\n"

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
        settings = CellSettings.model_validate(data["settings"])
        outcome = _OUTCOMES.validate_python({key: data[key] for key in _OUTCOME_KEYS})
        return cls(Cell(data["label"], data["seed"], settings), outcome)


class OldFormatError(ValueError):
    """A file of another format version."""


def finished(records: Sequence[CellRecord]) -> list[CellRecord]:
    """Return the records whose networks were trained to the end."""
    return [record for record in records if record.outcome.finished]


_OUTCOMES: TypeAdapter[Outcome] = TypeAdapter(Outcome)
_OUTCOME_KEYS: list[Any] = [f.name for f in fields(Outcome)]
