"""The cells of a folder that several processes share: what this process may begin, and what the others have ended."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from mas.experiments.cell import Cell
from mas.experiments.engines.task import Failed, Result, Stopped, Task, TaskQueue
from mas.experiments.events import CellAt, CellEnded, CellEvent, CellStarted, Progress
from mas.experiments.locks import CellLocks
from mas.experiments.store import Store

_LOOK = 0.5  # seconds between two listings of the folder


@dataclass
class SharedCells:
    """The cells that this process trains, beside other processes on the same folder.

    A cell is begun only with its lock, and only if no other process has ended it. What others have ended is
    reported as if it had been ended here.

    Attributes:
        store: the folder.
        locks: of its cells.
        progress: called with each event.
        kept: ids of the cells that were finished when the run began; of these nothing is reported.
        failed: a line for each cell that broke, here or in another process.
        stopped: how many cells were stopped.
    """

    store: Store
    locks: CellLocks
    progress: Progress
    kept: frozenset[str] = frozenset()
    failed: list[str] = field(default_factory=list)
    stopped: int = 0
    _begun: dict[str, str] = field(default_factory=dict)  # id -> when
    _looked: float = float("-inf")
    _finished: set[str] = field(default_factory=set)
    _broken: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._broken_before = self.store.failures()

    def queue(self, cells: Sequence[Cell], *, keep_weights: bool) -> TaskQueue:
        """Return the cells that are not finished, as tasks to be taken one by one."""
        began_without = [cell for cell in cells if cell.id not in self.kept]
        tasks = [Task(cell, keep_weights, self.store.checkpoints(cell)) for cell in began_without]
        self._looked = float("-inf")
        missing = [task for task in tasks if not self._is_done(task)]
        return TaskQueue(missing, self._claim, self._is_done)

    def report(self, event: CellEvent) -> None:
        """Pass on what a cell reports, and keep it with the lock, for ``mas status``."""
        if isinstance(event, CellStarted):
            self._begun[event.cell.id] = datetime.now(UTC).isoformat(timespec="seconds")
        if isinstance(event, CellStarted | CellAt):
            self.locks.note(event.cell.id, _plain(event) | {"begun": self._begun.get(event.cell.id)})
        self.progress(event)

    def end(self, queue: TaskQueue, task: Task, result: Result) -> None:
        """Keep what came of a task, unless another process has taken its cell over.

        Raises:
            UserError: it cannot be written.
        """
        cell = task.cell
        if isinstance(result, Stopped):
            self.stopped += 1
        elif self.locks.is_lost(cell.id) or self.store.has(cell):
            queue.give_back(task)
        elif isinstance(result, Failed):
            self.store.note_failure(cell, result.reason)
            self._fail(cell, result.reason)
        else:
            outcome = result.outcome
            self.store.save(cell, outcome, result.weights, result.provenance)
            self.progress(CellEnded(cell, outcome.status, outcome.reason, outcome.seconds))
        self.locks.release(cell.id)

    def _claim(self, task: Task) -> bool:
        """Take the lock of a cell, and look whether it is still to be done."""
        name = task.cell.id
        if not self.locks.take(name):
            return False
        if self.store.has(task.cell) or self._broke_elsewhere(name, self.store.failure_state(name)):
            self.locks.release(name)
            self._looked = float("-inf")
            return False
        return True

    def _is_done(self, task: Task) -> bool:
        """Return whether another process has ended a cell since it was put into the queue; then report it."""
        self._look()
        cell = task.cell
        if cell.id in self._finished and (record := self.store.read(cell)):
            self.progress(CellEnded(cell, record.outcome.status, record.outcome.reason, record.outcome.seconds))
            return True
        if self._broke_elsewhere(cell.id, self._broken.get(cell.id)):
            self._fail(cell, self.store.failure(cell.id) or "in another process")
            return True
        return False

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            self._finished = self.store.finished_ids()
            self._broken = self.store.failures()

    def _broke_elsewhere(self, name: str, state: tuple[int, ...] | None) -> bool:
        """Return whether a cell broke since this run began: a run tries each cell once."""
        return state is not None and state != self._broken_before.get(name)

    def _fail(self, cell: Cell, reason: str) -> None:
        self.failed.append(f"{cell.id}: {reason}")
        self.progress(CellEnded(cell, "failed", reason))


def _plain(event: CellEvent) -> dict[str, Any]:
    own = {key: value for key, value in asdict(event).items() if key != "cell"}
    return own if isinstance(event, CellAt) else {}
