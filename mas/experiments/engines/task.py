"""What engines pass on: a cell to be done, and what came of it."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mas.experiments.cell import Cell
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.context import CellContext
from mas.experiments.errors import UserError
from mas.experiments.events import CellEvent, CellStarted, ignore
from mas.experiments.jobs import run_cell
from mas.experiments.provenance import identity
from mas.experiments.stopping import StoppedError, ending_when_asked
from mas.experiments.training import Trained


@dataclass(frozen=True)
class Task:
    """A cell, and what is to be kept of it."""

    cell: Cell
    keep_weights: bool
    checkpoints: Path | None  # the folder for its checkpoints; None saves nothing on the way


@dataclass(frozen=True)
class Failed:
    """A cell that broke, in words."""

    reason: str


@dataclass(frozen=True)
class Stopped:
    """A cell that was stopped on the way."""


Result = Trained | Failed | Stopped


class TaskQueue:
    """Tasks that are to be done, each handed out once.

    An engine takes a task only when it can begin it at once, so that several processes can share a list of cells.

    Args:
        tasks: in the order in which they are begun.
        claim: called before a task is handed out. False means that another process does the cell now;
            the task is offered again later.
        is_done: called before that. True means that another process has done the cell; the task is dropped.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        claim: Callable[[Task], bool] = lambda task: True,
        is_done: Callable[[Task], bool] = lambda task: False,
    ):
        self._waiting = deque(tasks)
        self._claim = claim
        self._is_done = is_done

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Task | None:
        """Return the next task that can be claimed; None if there is none at present."""
        for _ in range(len(self._waiting)):
            task = self._waiting.popleft()
            if self._is_done(task):
                continue
            if self._claim(task):
                return task
            self._waiting.append(task)
        return None

    def give_back(self, task: Task) -> None:
        """Offer a task again that was handed out."""
        self._waiting.append(task)

    def rest(self) -> list[Task]:
        """Return the tasks that were not handed out."""
        return list(self._waiting)


def attempt(task: Task, report: Callable[[CellEvent], None] = ignore) -> Result:
    """Do a task; return in words what broke, so that one cell does not stop the others."""
    checkpoints = None if task.checkpoints is None else Checkpoints(task.checkpoints, of=identity(task.cell))
    report(CellStarted(task.cell))
    try:
        with ending_when_asked():
            return run_cell(task.cell, task.keep_weights, CellContext(checkpoints, report))
    except StoppedError:
        return Stopped()
    except UserError as error:
        return Failed(str(error))
    except Exception as error:  # noqa: BLE001 - shown with the cell's name, and the run exits with 1
        return Failed(f"{type(error).__name__}: {error}")
