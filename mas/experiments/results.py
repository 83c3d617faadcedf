"""What the finished cells of a run come to: the tries, the choices made by them, the records."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mas.experiments.config.search import Choice
from mas.experiments.record import CellRecord


@dataclass(frozen=True)
class Tried:
    """One choice that was tried, and the records of its cells."""

    choice: Choice
    records: list[CellRecord]

    def mean_acc(self) -> float:
        """Return the mean final ACC; NaN if a cell diverged, or there is none."""
        scores = [record.outcome.final_acc() for record in self.records]
        return float(np.mean(scores)) if scores else np.nan


@dataclass
class Results:
    """Of one run, as far as it has come."""

    records: list[CellRecord]  # of the cells to report, label by label
    tries: dict[str, list[Tried]] = field(default_factory=dict)  # by label
    chosen: dict[str, Choice] = field(default_factory=dict)  # by label, where every try is finished


def best(tries: Sequence[Tried]) -> Choice | None:
    """Return the choice with the best mean final ACC; None if each one diverged.

    A choice that diverged with any seed is not taken; of equals the first is.
    """
    scores = [tried.mean_acc() for tried in tries]
    return tries[int(np.nanargmax(scores))].choice if not np.isnan(scores).all() else None
