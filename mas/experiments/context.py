"""What a cell may use of the process that does it. None of it changes a result."""

from collections.abc import Callable
from dataclasses import dataclass

from mas.experiments.checkpoints import Checkpoints
from mas.experiments.events import CellEvent, ignore


@dataclass(frozen=True)
class CellContext:
    """Where a cell saves its checkpoints, and to whom it reports.

    Attributes:
        checkpoints: of the cell; None saves nothing on the way.
        report: called with events of the cell, in the process that does it.
    """

    checkpoints: Checkpoints | None = None
    report: Callable[[CellEvent], None] = ignore
