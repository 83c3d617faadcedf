"""What runs on a node of a Ray cluster: one task, in a process that does one at a time.

Nothing heavy is imported before the number of threads is set.
"""

import os
import pickle
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mas
from mas.experiments.engines.mailbox import Letter
from mas.experiments.engines.modules import Modules, put_on_path
from mas.experiments.engines.threads import ONE_THREAD
from mas.experiments.stopping import request_stop, stop_requested

if TYPE_CHECKING:
    from mas.experiments.checkpoints import CheckpointFile, Checkpoints
    from mas.experiments.engines.task import Result, Task
    from mas.experiments.events import CellEvent

_SHARE = 0.02  # of a cell's time, at most, that sending checkpoints takes
_PATIENCE = 10.0  # seconds to wait for the mailbox


@dataclass(frozen=True)
class Order:
    """A task on its way to a node.

    Attributes:
        name: of the cell.
        run: a name for the run.
        task: pickled.
        checkpoint: where the cell goes on; None is at its beginning.
        version: of this library, where the driver is.
        data_root: where the driver looks for data sets.
        data: the fingerprints of the driver's data sets, by name.
        pause: seconds between two letters.
        bring_back: seconds between two checkpoints that are sent.
    """

    name: str
    run: str
    task: bytes
    checkpoint: "CheckpointFile | None"
    version: str
    data_root: str | None
    data: Mapping[str, str]
    pause: float
    bring_back: float


@dataclass(frozen=True)
class Done:
    """What came of an order.

    Attributes:
        result: a `mas.experiments.engines.task.Result`, pickled.
        events: those that no letter has brought, pickled.
        checkpoint: the newest one of a cell that was stopped.
    """

    result: bytes
    events: bytes
    checkpoint: "CheckpointFile | None" = None


def do_order(order: Order, modules: Modules, mailbox: Any) -> Done:
    """Do a task, and send news of it on the way.

    Args:
        order: what is to be done.
        modules: of the user's own, that the cell may import.
        mailbox: the actor that news are sent to.
    """
    os.environ.update(ONE_THREAD)
    root = folder_of(order.run)
    put_on_path(modules, root / f"modules-{modules.digest}")
    _look_for_data(order)
    from mas.experiments.checkpoints import Checkpoints
    from mas.experiments.engines.task import Stopped

    checkpoints = Checkpoints(root / order.name)
    if order.checkpoint and checkpoints.newest_number() < order.checkpoint.number:
        checkpoints.put(order.checkpoint)
    with _Correspondence(order, mailbox, checkpoints) as correspondence:
        result = _attempt(order, checkpoints.folder, correspondence)
    left = checkpoints.newest_file() if isinstance(result, Stopped) else None
    checkpoints.clear()
    return Done(pickle.dumps(result), correspondence.unsent(), left)


def folder_of(run: str) -> Path:
    """Return the folder of a run on a node. A cell whose process died finds its checkpoints there."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"mas-{user}" / run


def _look_for_data(order: Order) -> None:
    """Look for data sets where the driver does, if this node has such a folder; else in the node's own ``MAS_DATA``."""
    if order.data_root and Path(order.data_root).is_dir():
        os.environ["MAS_DATA"] = order.data_root


def _attempt(order: Order, folder: Path, correspondence: "_Correspondence") -> "Result":
    """Do the task of an order; return in words what is wrong with this node, too."""
    from mas.experiments.engines.task import Failed, Stopped, attempt
    from mas.experiments.errors import UserError

    if order.version != mas.__version__:
        versions = f"version {mas.__version__} of memory-aware-synapses, and the driver {order.version}"
        return Failed(f"{_here()} has {versions}; install the same on all")
    if stop_requested():
        return Stopped()
    try:
        task: Task = pickle.loads(order.task)  # noqa: S301 - from our own driver
        _check_data(order, task)
    except UserError as error:
        return Failed(str(error))
    except Exception as error:  # noqa: BLE001 - shown with the cell's name, and the run exits with 1
        return Failed(f"{_here()}: {type(error).__name__}: {error}")
    result = attempt(replace(task, checkpoints=folder), correspondence.report)
    return Failed(f"{result.reason} (on {_here()})") if isinstance(result, Failed) else result


def _check_data(order: Order, task: "Task") -> None:
    """Raise UserError if this node has other images than the driver."""
    from mas.benchmarks import data_root
    from mas.experiments.errors import UserError
    from mas.experiments.provenance import fingerprints

    for name, found in fingerprints(task.cell.settings).items():
        if order.data.get(name, found) != found:
            raise UserError(
                f"{_here()} has other images called {name} than the driver; make {data_root()} there the same"
            )


def _here() -> str:
    """Return a name for this node."""
    return f"node {os.uname().nodename if hasattr(os, 'uname') else 'here'}"


class _Correspondence:
    """Sends what a cell reports and saves, in a thread beside it, and stops the cell when it is told to."""

    def __init__(self, order: Order, mailbox: Any, checkpoints: "Checkpoints"):
        self._order = order
        self._mailbox = mailbox
        self._checkpoints = checkpoints
        self._sent = order.checkpoint.number if order.checkpoint else -1
        self._next = time.monotonic() + order.bring_back
        self._events: list[CellEvent] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_letters, daemon=True)

    def __enter__(self) -> "_Correspondence":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, event: "CellEvent") -> None:
        """Keep an event for the next letter. Its cell is known where the letter goes."""
        with self._lock:
            self._events.append(replace(event, cell=None))  # type: ignore[arg-type]

    def unsent(self) -> bytes:
        """Return the events for the next letter, pickled."""
        with self._lock:
            events, self._events = self._events, []
        return pickle.dumps(events) if events else b""

    def _write_letters(self) -> None:
        while True:
            self._exchange()
            if self._ended.wait(self._order.pause):
                return

    def _exchange(self) -> None:
        import ray

        node = ray.get_runtime_context().get_node_id()
        letter = Letter(self._order.name, node, self.unsent(), self._due_checkpoint())
        begun = time.monotonic()
        try:
            stop = ray.get(self._mailbox.exchange.remote(letter), timeout=_PATIENCE)
        except ray.exceptions.RayError:
            return  # the mailbox begins anew elsewhere
        if letter.checkpoint is not None:
            self._sent = letter.checkpoint.number
            now = time.monotonic()
            self._next = now + max(self._order.bring_back, (now - begun) / _SHARE)
        if stop:
            request_stop()

    def _due_checkpoint(self) -> "CheckpointFile | None":
        """Return the newest checkpoint if it is time to send one, and the driver does not have it."""
        if time.monotonic() < self._next or self._checkpoints.newest_number() <= self._sent:
            return None
        return self._checkpoints.newest_file()
