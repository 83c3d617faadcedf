"""What an engine provides: a check of what was asked for, and a place where cells are done while it is open."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from mas.experiments.config.schema import Resources
from mas.experiments.engines.task import Result, Task, TaskQueue
from mas.experiments.events import CellEvent

Report = Callable[[CellEvent], None]


@dataclass(frozen=True)
class EngineOptions:
    """How cells are done. No result depends on it.

    Attributes:
        workers: cells at a time; None is as many as there is room for.
        address: of a cluster; None is this machine.
        resources: that each cell takes.
        devices: that cells train on.
        functions: of the user's own that cells import, each ``package.module:name``.
        data: the fingerprint of each data set, by its name.
    """

    workers: int | None = None
    address: str | None = None
    resources: Resources = field(default_factory=Resources)
    devices: Sequence[str] = ()
    functions: Sequence[str] = ()
    data: Mapping[str, str] = field(default_factory=dict)


class EngineFunction(Protocol):
    """Does tasks."""

    def __call__(self, tasks: TaskQueue, report: Report) -> Iterator[tuple[Task, Result]]:
        """Yield each task with its result, as they end.

        The first Ctrl-C or SIGTERM asks all cells to save a checkpoint and stop, which takes a few seconds; the second
        one ends all processes at once.

        Args:
            tasks: to be done.
            report: called with what the cells report.
        """


@dataclass(frozen=True)
class OpenEngine:
    """An engine that is ready.

    Attributes:
        run: does tasks; it may be called several times.
        workers: how many cells it does at a time.
    """

    run: EngineFunction
    workers: int


@dataclass(frozen=True)
class Engine:
    """A way to do cells.

    Attributes:
        check: raises UserError for what the engine cannot do, before anything is written.
        open: makes the engine ready, and ends all its processes afterwards; raises UserError if it cannot.
    """

    check: Callable[[EngineOptions], None]
    open: Callable[[EngineOptions], AbstractContextManager[OpenEngine]]
