"""What a run would do: its cells with their states, and about how long the rest takes. Nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mas.experiments.cell import Cell
from mas.experiments.config.schema import Experiment
from mas.experiments.engines.devices import cores
from mas.experiments.plan import Plan
from mas.experiments.runner import choices, read_tries
from mas.experiments.store import Store


@dataclass(frozen=True)
class DryRun:
    """The cells of a config in a folder.

    Attributes:
        finished: that the folder holds.
        seconds: that each of these took.
        missing: that are to be trained.
        to_come: the number of further cells, whose values are suggested once others are finished.
        workers: processes that would train them.
    """

    finished: Sequence[Cell]
    seconds: Sequence[float]
    missing: Sequence[Cell]
    to_come: int
    workers: int

    def seconds_left(self) -> float | None:
        """Return an estimate of the time for the missing cells; None if no cell is finished.

        A cell is expected to take as long as finished ones of its label do on average, or else as all do.
        """
        if not self.finished:
            return None
        by_label: dict[str, list[float]] = {}
        for cell, seconds in zip(self.finished, self.seconds, strict=True):
            by_label.setdefault(cell.label, []).append(seconds)
        every = float(np.mean(self.seconds))
        expected = [float(np.mean(by_label.get(cell.label, every))) for cell in self.missing]
        seconds = sum(expected) + every * self.to_come
        return seconds / min(self.workers, max(1, len(self.missing)))

    def lines(self) -> list[str]:
        """Return what people read: a line for each cell, then a summary."""
        states = {cell.id: "finished" for cell in self.finished} | {cell.id: "to train" for cell in self.missing}
        lines = [f"{name}: {state}" for name, state in states.items()]
        if self.to_come:
            lines.append(f"and {self.to_come} more, whose values are suggested once these are finished")
        left = len(self.missing) + self.to_come
        return [*lines, f"{len(self.finished)} cells finished, {left} to train{self._estimate()}"]

    def _estimate(self) -> str:
        if not self.missing:
            return ""
        seconds = self.seconds_left()
        if seconds is None:
            return "; how long that takes can be estimated once a cell is finished"
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return f": about {_time(seconds)} with {workers}, from the times of finished cells"


def dry_run(config: Experiment, folder: Path, workers: int | None = None) -> DryRun:
    """Return what `mas.experiments.runner.run_experiment` would do.

    Raises:
        UserError: the folder holds cells of the same names with other settings, or a damaged one.
    """
    store = Store(folder)
    plan = Plan(config, store.read)
    chosen = choices(plan, read_tries(plan, store))
    ready, waiting = plan.cells(chosen), plan.waiting(chosen)
    store.refuse_others(ready, waiting)
    finished, seconds, missing = [], [], []
    for cell in [*plan.trying_cells(), *ready, *waiting]:
        record = store.read(cell)
        if record is None:
            missing.append(cell)
        else:
            finished.append(cell)
            seconds.append(record.outcome.seconds)
    return DryRun(finished, seconds, missing, plan.to_come, workers or cores())


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
