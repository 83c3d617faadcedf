"""Processes on this machine: one cell at a time in each, and a process that dies is replaced."""

import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from mas.experiments.engines.task import Failed, Result, Stopped, Task, attempt
from mas.experiments.stopping import request_stop, stop_requested, stopping_on_signals

RETRIES = 1
"""How often a cell is begun again whose process died."""

_GRACE = 4.0  # seconds that cells have to save a checkpoint when they are asked to stop


def run_local(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Result]]:
    """Yield each task with its result, as they end.

    The first Ctrl-C or SIGTERM asks all cells to save a checkpoint and stop, which takes a few seconds; the second one
    ends all processes at once.

    Args:
        tasks: to be done, in this order.
        workers: processes; with one, tasks are done in this process.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        with stopping_on_signals(at_once=lambda: None):
            for task in tasks:
                yield task, Stopped() if stop_requested() else attempt(task)
        return
    pool = _Pool(tasks, workers)
    with stopping_on_signals(at_once=pool.kill):
        try:
            yield from pool.run()
        finally:
            pool.kill()


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Task | None = None


class _Pool:
    def __init__(self, tasks: Sequence[Task], workers: int):
        self.waiting = deque(tasks)
        self.deaths: dict[str, int] = {}
        self.workers = [_start() for _ in range(workers)]

    def run(self) -> Iterator[tuple[Task, Result]]:
        for worker in self.workers:
            self._give(worker)
        while any(worker.task for worker in self.workers):
            if stop_requested():
                yield from self._stop()
                return
            for worker in self._ready(timeout=0.2):
                ended = self._receive(worker)
                if ended is not None:
                    yield ended
        yield from ((task, Stopped()) for task in self.waiting)

    def kill(self) -> None:
        """End every process at once."""
        for worker in self.workers:
            worker.process.kill()

    def _give(self, worker: _Worker) -> None:
        """Give a worker the next task, if there is one."""
        worker.task = self.waiting.popleft() if self.waiting and not stop_requested() else None
        if worker.task is not None:
            worker.connection.send_bytes(pickle.dumps(worker.task))

    def _ready(self, timeout: float) -> list[_Worker]:
        """Return the workers that have a result, or have died."""
        busy = [worker for worker in self.workers if worker.task]
        handles = {worker.connection: worker for worker in busy}
        return [handles[handle] for handle in wait(list(handles), timeout)]  # type: ignore[index]

    def _receive(self, worker: _Worker) -> tuple[Task, Result] | None:
        """Return what a worker has sent; None if it died and its task is to be tried again."""
        task = worker.task
        if task is None:
            return None
        try:
            result: Result = pickle.loads(worker.connection.recv_bytes())  # noqa: S301 - from our own process
        except (EOFError, ConnectionError):
            return self._replace(worker, task)
        self._give(worker)
        return task, result

    def _replace(self, worker: _Worker, task: Task) -> tuple[Task, Result] | None:
        """Start another process in the place of one that died."""
        worker.process.join()
        code = worker.process.exitcode
        deaths = self.deaths[task.cell.id] = self.deaths.get(task.cell.id, 0) + 1
        new = _start()
        worker.process = new.process
        worker.connection = new.connection
        if deaths <= RETRIES:
            self.waiting.appendleft(task)
            self._give(worker)
            return None
        self._give(worker)
        return task, Failed(f"its process died {deaths} times, {_cause(code)}; run again with fewer --workers")

    def _stop(self) -> Iterator[tuple[Task, Result]]:
        """Ask every worker to stop, and yield what they send until the grace is over."""
        for worker in self.workers:
            if worker.task and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)
        end = time.monotonic() + _GRACE
        while any(worker.task for worker in self.workers) and time.monotonic() < end:
            for worker in self._ready(timeout=0.2):
                task, worker_task = worker.task, worker.task
                ended = self._receive(worker) if worker_task else None
                worker.task = None
                yield ended or (task, Stopped())  # type: ignore[misc]
        yield from ((worker.task, Stopped()) for worker in self.workers if worker.task)
        yield from ((task, Stopped()) for task in self.waiting)


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
    with _main_module_hidden():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(connection: Connection) -> None:
    """Do the tasks that come, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to every process; the parent passes it on
    signal.signal(signal.SIGTERM, lambda number, frame: request_stop())
    _end_with_parent()
    while True:
        try:
            task: Task = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own process
        except EOFError:
            return
        result = Stopped() if stop_requested() else attempt(task)
        connection.send_bytes(pickle.dumps(result))


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
