"""What engines pass on: a cell to be done, and what came of it."""

from dataclasses import dataclass
from pathlib import Path

from mas.experiments.cell import Cell
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.errors import UserError
from mas.experiments.jobs import run_cell
from mas.experiments.stopping import StoppedError
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


def attempt(task: Task) -> Result:
    """Do a task; return in words what broke, so that one cell does not stop the others."""
    checkpoints = None if task.checkpoints is None else Checkpoints(task.checkpoints)
    try:
        return run_cell(task.cell, task.keep_weights, checkpoints)
    except StoppedError:
        return Stopped()
    except UserError as error:
        return Failed(str(error))
    except Exception as error:  # noqa: BLE001 - shown with the cell's name, and the run exits with 1
        return Failed(f"{type(error).__name__}: {error}")
