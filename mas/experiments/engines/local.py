"""Processes on this machine: one cell at a time in each, and a process that dies is replaced."""

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from mas.experiments.engines.devices import check_device, cores
from mas.experiments.engines.engine import Engine, EngineOptions, OpenEngine
from mas.experiments.engines.task import Failed, Result, Stopped, Task, TaskQueue, attempt
from mas.experiments.engines.threads import ONE_THREAD, environment_changed
from mas.experiments.errors import UserError
from mas.experiments.events import CellEvent, ignore
from mas.experiments.stopping import request_stop, stop_requested, stopping_on_signals

RETRIES = 1
"""How often a cell is begun again whose process died."""

_POLL = 0.2  # seconds
_GRACE = 4.0  # seconds that cells have to save a checkpoint when they are asked to stop


def run_local(
    tasks: TaskQueue, report: Callable[[CellEvent], None] = ignore, *, workers: int = 1
) -> Iterator[tuple[Task, Result]]:
    """Yield each task with its result, as they end.

    The first Ctrl-C or SIGTERM asks all cells to save a checkpoint and stop, which takes a few seconds; the second one
    ends all processes at once.

    Args:
        tasks: to be done.
        report: called with what the cells report.
        workers: processes; with one, tasks are done in this process.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        with stopping_on_signals(at_once=lambda: None):
            yield from _run_here(tasks, report)
        return
    pool = _Pool(tasks, workers, report)
    with stopping_on_signals(at_once=pool.kill):
        try:
            yield from pool.run()
        finally:
            pool.kill()


def _run_here(tasks: TaskQueue, report: Callable[[CellEvent], None]) -> Iterator[tuple[Task, Result]]:
    while len(tasks) and not stop_requested():
        task = tasks.take()
        if task is None:
            time.sleep(_POLL)  # other processes do the rest
        else:
            yield task, attempt(task, report)
    yield from ((task, Stopped()) for task in tasks.rest())


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Task | None = None


class _Pool:
    def __init__(self, tasks: TaskQueue, workers: int, report: Callable[[CellEvent], None]):
        self.tasks = tasks
        self.report = report
        self.deaths: dict[str, int] = {}
        self.workers = [_start() for _ in range(workers)]

    def run(self) -> Iterator[tuple[Task, Result]]:
        while not stop_requested():
            for worker in self.workers:
                if worker.task is None:
                    self._give(worker, self.tasks.take())
            if not len(self.tasks) and not self._busy():
                return
            yield from self._results()
        yield from self._stop()

    def kill(self) -> None:
        """End every process at once."""
        for worker in self.workers:
            worker.process.kill()

    def _give(self, worker: _Worker, task: Task | None) -> None:
        worker.task = task
        if task is not None:
            worker.connection.send_bytes(pickle.dumps(task))

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.task]

    def _results(self) -> Iterator[tuple[Task, Result]]:
        """Wait a moment for what workers send; pass on what they report, and yield the results."""
        handles = {worker.connection: worker for worker in self._busy()}
        if not handles:
            time.sleep(_POLL)  # other processes do the rest
        for handle in wait(list(handles), _POLL):
            worker = handles[handle]  # type: ignore[index]
            task = worker.task
            found = self._receive(worker)
            if isinstance(found, CellEvent):
                self.report(found)
            elif found is not None and task is not None:
                yield task, found

    def _receive(self, worker: _Worker) -> CellEvent | Result | None:
        """Return what a worker has sent; None if it died and its task is begun again."""
        try:
            found: CellEvent | Result = pickle.loads(worker.connection.recv_bytes())  # noqa: S301 - from our own process
        except (EOFError, ConnectionError):
            return self._replace(worker)
        if not isinstance(found, CellEvent):
            worker.task = None
        return found

    def _replace(self, worker: _Worker) -> Result | None:
        """Start another process in the place of one that died, and give it the same task, unless it died often."""
        worker.process.join()
        code = worker.process.exitcode
        task = worker.task
        new = _start()
        worker.process = new.process
        worker.connection = new.connection
        worker.task = None
        if task is None:
            return None
        deaths = self.deaths[task.cell.id] = self.deaths.get(task.cell.id, 0) + 1
        if deaths <= RETRIES:
            self._give(worker, task)
            return None
        return Failed(f"its process died {deaths} times, {_cause(code)}; run again with fewer --workers")

    def _stop(self) -> Iterator[tuple[Task, Result]]:
        """Ask every worker to stop, and yield what they send until the grace is over."""
        for worker in self._busy():
            if worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)
        end = time.monotonic() + _GRACE
        while self._busy() and time.monotonic() < end:
            yield from self._results()
        yield from ((worker.task, Stopped()) for worker in self._busy() if worker.task)
        yield from ((task, Stopped()) for task in self.tasks.rest())


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"the last time by {name}" + (", perhaps for lack of memory" if -code == signal.SIGKILL else "")
    return f"the last time with exit code {code}"


def _start() -> _Worker:
    # spawn: a fork of a process that has used torch's threads can hang
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    with _main_module_hidden(), environment_changed(ONE_THREAD):
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(connection: Connection) -> None:
    """Do the tasks that come, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to every process; the parent passes it on
    signal.signal(signal.SIGTERM, lambda number, frame: request_stop())
    _end_with_parent()

    def send(found: CellEvent | Result) -> None:
        connection.send_bytes(pickle.dumps(found))

    while True:
        try:
            task: Task = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own process
        except EOFError:
            return
        result = Stopped() if stop_requested() else attempt(task, send)
        send(result)


def _end_with_parent() -> None:
    """End this worker when its parent process ends, also in the middle of a cell."""
    parent = parent_process()

    def wait_for_end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep workers from importing the caller's script again.

    A spawned process imports ``__main__`` first, so that what is defined there can be unpickled. Cells
    need nothing of it, and a script without an ``if __name__ == "__main__"`` guard would run again.
    """
    main = vars(sys.modules["__main__"])
    shown = dict(main)
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update({name: shown[name] for name in ("__spec__", "__file__") if name in shown})


def _check(options: EngineOptions) -> None:
    """Raise UserError for an address, and for a device that is not here."""
    if options.address is not None:
        raise UserError(
            f"address: found {options.address!r} with engine local; give it with --engine ray, or leave it out"
        )
    for device in options.devices:
        check_device(device)


@contextmanager
def _open(options: EngineOptions) -> Iterator[OpenEngine]:
    workers = options.workers or cores()
    yield OpenEngine(partial(run_local, workers=workers), workers)


LOCAL = Engine(_check, _open)
"""Processes on this machine."""
