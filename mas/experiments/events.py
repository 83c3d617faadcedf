"""What happens in a run, as it happens: shown on the terminal, written to logs, kept for ``mas status``."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mas.experiments.cell import Cell


@dataclass(frozen=True)
class Started:
    """The folder is taken, and cells are about to be trained."""

    folder: Path
    kept: int  # cells that are finished already
    total: int
    workers: int = field(default=1, compare=False)  # that are to do the rest; it depends on the machine


@dataclass(frozen=True)
class CellStarted:
    """A worker has begun a cell, or goes on with it."""

    cell: "Cell"


@dataclass(frozen=True)
class CellAt:
    """How far a cell has come; sent at most twice a second.

    Loss and accuracy are means over the training samples since the last one.
    """

    cell: "Cell"
    experience: int  # that is trained, counted from 0
    experiences: int
    epoch: int  # of this experience, counted from 0
    epochs: int
    share: float  # of the cell's training that is done, from 0 to 1
    loss: float | None = None
    accuracy: float | None = None
    part: str = ""  # what is trained, where it is not the cell's own network, such as "probe network"


@dataclass(frozen=True)
class EpochEnded:
    """A cell has ended an epoch of its training.

    Loss and accuracy are means over the training samples of the epoch, each before its step. In the epoch in which
    a stopped cell goes on, they are those of the samples since then.
    """

    cell: "Cell"
    experience: int  # counted from 0
    epoch: int  # of this experience, counted from 0
    epochs_done: int  # of the whole stream
    loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class CellTested:
    """A cell was tested on every experience of its stream."""

    cell: "Cell"
    trained_on: int  # the experience that was trained last, counted from 0; -1 before the first one
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class CellEnded:
    """A cell was trained, diverged or failed."""

    cell: "Cell"
    status: str  # "finished", "diverged" or "failed"
    reason: str | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        """Return the event in one line, such as ``mas-seed0: finished, 1.2 s``."""
        reason = f" ({self.reason})" if self.reason else ""
        seconds = "" if self.seconds is None else f", {self.seconds:.1f} s"
        return f"{self.cell.id}: {self.status}{reason}{seconds}"


CellEvent = CellStarted | CellAt | EpochEnded | CellTested
"""What a worker sends while it does a cell."""

Event = Started | CellEvent | CellEnded

Progress = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Do nothing with an event."""
