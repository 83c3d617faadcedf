"""How far a run has come: what is finished, running, broken and waiting."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mas.experiments.cell import Cell
from mas.experiments.errors import UserError
from mas.experiments.locks import Lock, locks_of
from mas.experiments.maintenance.folders import open_folder
from mas.experiments.record import CellRecord
from mas.experiments.report.sections import Table
from mas.experiments.store import Store

STATES = ("done", "running", "stopped", "failed", "diverged", "damaged", "waiting")
"""The states of a cell. Of a stopped one a checkpoint is there, from which the next run goes on."""


@dataclass(frozen=True)
class CellStatus:
    """How far one cell has come."""

    id: str
    state: str  # of `STATES`
    detail: str = ""  # how far, or the reason
    seconds: float | None = None  # that it took
    peak_memory: int | None = None  # bytes


@dataclass(frozen=True)
class FolderStatus:
    """How far a run has come."""

    folder: Path
    cells: list[CellStatus]

    def counts(self) -> dict[str, int]:
        """Return how many cells there are in each state that occurs."""
        found = Counter(cell.state for cell in self.cells)
        return {state: found[state] for state in STATES if found[state]}

    def summary(self) -> str:
        """Return the counts, and what a finished cell took, in one line."""
        line = ", ".join(f"{count} {state}" for state, count in self.counts().items())
        line = f"{self.folder}: {len(self.cells)} cells: {line}"
        times = [cell.seconds for cell in self.cells if cell.seconds is not None]
        memory = [cell.peak_memory for cell in self.cells if cell.peak_memory is not None]
        if times:
            line += f"; a cell took {sum(times) / len(times):.1f} s on average, {max(times):.1f} s at most"
        if memory:
            line += f", and {_megabytes(max(memory))} at most"
        return line

    def shown(self, *, every: bool = False) -> Table:
        """Return headings and rows that people read.

        Args:
            every: show also cells that are done or waiting, of which there are many.
        """
        rows = []
        for cell in self.cells:
            if every or cell.state not in ("done", "waiting"):
                seconds = "" if cell.seconds is None else f"{cell.seconds:.1f}"
                memory = "" if cell.peak_memory is None else _megabytes(cell.peak_memory)
                rows.append([cell.id, cell.state, cell.detail, seconds, memory])
        return Table(["cell", "state", "", "seconds", "memory"], rows)


def status(folder: str | Path) -> FolderStatus:
    """Return how far the run in a folder has come. Nothing in the folder is changed.

    Raises:
        UserError: it is no folder of a run.
    """
    opened = open_folder(Path(folder))
    locks = {lock.id: lock for lock in locks_of(opened.store.folder / "locks")}
    cells = [_status_of(cell, opened.store, locks.get(cell.id)) for cell in opened.plan.every_cell()]
    return FolderStatus(opened.store.folder, cells)


def _status_of(cell: Cell, store: Store, lock: Lock | None) -> CellStatus:
    try:
        record = store.read(cell)
    except UserError as error:
        return CellStatus(cell.id, "damaged", error.lines[0])
    if record is not None:
        return _of_record(record)
    if lock is not None and not lock.is_stale:
        return CellStatus(cell.id, "running", _how_far(lock))
    if (reason := store.failure(cell.id)) is not None:
        return CellStatus(cell.id, "failed", reason)
    if _has_files(store.checkpoints(cell)):
        return CellStatus(cell.id, "stopped", "the next run goes on from its checkpoint")
    return CellStatus(cell.id, "waiting")


def _of_record(record: CellRecord) -> CellStatus:
    outcome, made_with = record.outcome, record.provenance
    seconds = made_with.seconds if made_with else outcome.seconds
    memory = made_with.peak_memory if made_with else None
    state = "done" if outcome.finished else "diverged"
    return CellStatus(record.cell.id, state, outcome.reason or "", seconds, memory)


def _how_far(lock: Lock) -> str:
    """Return how far a running cell is: counts begin at 1 for people."""
    at = lock.progress
    where = f"on {lock.holder.host.partition('/')[0]}, process {lock.holder.pid}" if lock.holder else ""
    if "share" not in at:
        return where
    try:
        place = f"experience {at['experience'] + 1}/{at['experiences']}, epoch {at['epoch'] + 1}/{at['epochs']}"
        parts = [place, f"{100 * at['share']:.0f} %", _time_left(at.get("begun"), float(at["share"])), where]
    except (KeyError, TypeError, ValueError):
        return where
    return ", ".join(part for part in parts if part)


def _time_left(begun: str | None, share: float) -> str:
    if not begun or not 0 < share <= 1:
        return ""
    elapsed = (datetime.now(UTC) - datetime.fromisoformat(begun)).total_seconds()
    left = max(0.0, elapsed) * (1 - share) / share
    return f"about {left:.0f} s left" if left < 120 else f"about {left / 60:.0f} min left"


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MB"


def names_of(cells: Sequence[CellStatus], state: str) -> list[str]:
    """Return the ids of the cells in a state."""
    return [cell.id for cell in cells if cell.state == state]
