"""Cells as tasks of Ray, on this machine or on the nodes of a cluster.

The driver holds only the cells that are being done: as many as the cluster has room for, and a few more. No file
system needs to be shared: the driver sends a cell with its newest checkpoint and the user's modules, and gets back its
result and, now and then, its checkpoints.
"""

import os
import pickle
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import mas
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.engines.engine import Engine, EngineOptions, OpenEngine, Report
from mas.experiments.engines.mailbox import Letter, Mailbox
from mas.experiments.engines.modules import modules_of
from mas.experiments.engines.ray_cluster import check_room, connected, room_for
from mas.experiments.engines.ray_worker import Done, Order, do_order, folder_of
from mas.experiments.engines.task import Failed, Result, Stopped, Task, TaskQueue
from mas.experiments.errors import UserError
from mas.experiments.stopping import stop_requested, stopping_on_signals

RETRIES = 1
"""How often a cell is begun again whose process died."""

NODE_RETRIES = 10
"""How often a cell is begun again whose node died."""

BRING_BACK = 30.0
"""Seconds between two checkpoints of a cell that are brought to the driver."""

_POLL = 0.2  # seconds
_GRACE = 3.5  # seconds that cells have to save a checkpoint when they are asked to stop
_LOOK = 5.0  # seconds between two looks at the nodes
_PATIENCE = 5.0  # seconds to wait for the mailbox
_PAUSE = 0.3  # seconds between two letters of a cell; more where there are more than a hundred cells at a time


def _check(options: EngineOptions) -> None:
    """Raise UserError for cells that train on a GPU and are given none."""
    for device in options.devices:
        if device.startswith("cuda:"):
            raise UserError(f"training.device: found {device!r} with engine ray, which deals out GPUs; set cuda")
        if device == "cuda" and not options.resources.gpus:
            raise UserError("resources.gpus: found 0 with training.device=cuda; set resources.gpus=1, or a share of it")


@contextmanager
def _open(options: EngineOptions) -> Iterator[OpenEngine]:
    with connected(options) as ray:
        check_room(ray, options.resources)
        cells = RayCells(ray, options)
        try:
            yield OpenEngine(cells.run, cells.room)
        finally:
            shutil.rmtree(folder_of(cells.name), ignore_errors=True)


RAY = Engine(_check, _open)
"""Ray, on this machine or on a cluster."""


@dataclass
class _Running:
    task: Task
    node: str | None = None  # where it is done; None before it has begun


@dataclass
class _Deaths:
    of_process: int = 0
    of_node: int = 0


@dataclass
class _Batch:
    """The tasks of one call, and where they stand."""

    tasks: TaskQueue
    report: Report
    running: dict[Any, _Running] = field(default_factory=dict)  # by what Ray calls the result
    again: deque[Task] = field(default_factory=deque)  # whose process or node died
    deaths: dict[str, _Deaths] = field(default_factory=dict)  # by the id of a cell

    def next(self) -> Task | None:
        """Return a task that can be begun."""
        return self.again.popleft() if self.again else self.tasks.take()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.running or self.again or len(self.tasks))


class RayCells:
    """Does tasks on a Ray that is connected.

    Args:
        ray: the module, connected.
        options: of the engine.

    Attributes:
        name: of this run, for folders on the nodes.
    """

    def __init__(self, ray: Any, options: EngineOptions):
        self.name = secrets.token_hex(6)
        self._ray = ray
        self._options = options
        self._modules = ray.put(modules_of(options.functions))
        self._mailbox = _start_mailbox(ray)
        resources = {"num_cpus": options.resources.cpus, "num_gpus": options.resources.gpus}
        self._do = ray.remote(**resources, max_retries=0)(do_order)
        self._room = 0
        self._looked = float("-inf")

    @property
    def room(self) -> int:
        """How many cells can be done at a time, at present."""
        now = time.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            self._room = room_for(self._ray, self._options.resources)
        return min(self._room, self._options.workers or self._room)

    def run(self, tasks: TaskQueue, report: Report) -> Iterator[tuple[Task, Result]]:
        """Yield each task with its result, as they end; see `mas.experiments.engines.engine.EngineFunction`."""
        batch = _Batch(tasks, report)
        with stopping_on_signals(at_once=lambda: None):
            while not batch.is_over and not stop_requested():
                self._begin_more(batch)
                yield from self._ended(batch)
            if not batch.is_over:
                yield from self._stop(batch)

    def _begin_more(self, batch: _Batch) -> None:
        """Begin tasks: as many as there is room for, and a few that wait on the nodes so that none is idle."""
        limit = self._options.workers or self.room + 1 + self.room // 10
        while len(batch.running) < limit:
            task = batch.next()
            if task is None:
                return
            order = self._do.remote(self._order(task), self._modules, self._mailbox)
            batch.running[order] = _Running(task)

    def _order(self, task: Task) -> Order:
        checkpoint = Checkpoints(task.checkpoints).newest_file() if task.checkpoints else None
        return Order(
            name=task.cell.id,
            run=self.name,
            task=pickle.dumps(replace(task, checkpoints=None)),
            checkpoint=checkpoint,
            version=mas.__version__,
            data_root=os.environ.get("MAS_DATA"),
            data=self._options.data,
            pause=_PAUSE * max(1.0, self.room / 100),
            bring_back=BRING_BACK,
        )

    def _ended(self, batch: _Batch) -> Iterator[tuple[Task, Result]]:
        """Wait a moment for tasks to end; pass on what cells report, and yield the results."""
        if not batch.running:
            time.sleep(_POLL)  # other processes do the rest
            return
        orders = list(batch.running)
        self._ray.wait(orders, num_returns=1, timeout=_POLL)
        ready, _ = self._ray.wait(orders, num_returns=len(orders), timeout=0)
        self._read_letters(batch)  # those of a cell come before its result
        for order in ready:
            result = self._result(batch, order)
            running = batch.running.pop(order)
            if result is not None:
                yield running.task, result

    def _result(self, batch: _Batch, order: Any) -> Result | None:
        """Return what came of an order; None if its process or node died and the task is begun again."""
        running = batch.running[order]
        try:
            done: Done = self._ray.get(order)
        except self._ray.exceptions.RayTaskError as error:
            return Failed(" ".join(str(error.cause or error).split())[:300])
        except self._ray.exceptions.RayError as error:
            return self._died(batch, running, error)
        self._note(batch, running.task, done.events, done.checkpoint)
        result: Result = pickle.loads(done.result)  # noqa: S301 - from our own cell
        return result

    def _died(self, batch: _Batch, running: _Running, error: Exception) -> Failed | None:
        """Let a task begin again whose process or node died, unless that happened often."""
        task = running.task
        deaths = batch.deaths.setdefault(task.cell.id, _Deaths())
        if self._is_of_node(running, error):
            deaths.of_node += 1
        else:
            deaths.of_process += 1
        if deaths.of_process <= RETRIES and deaths.of_node <= NODE_RETRIES:
            batch.again.append(task)
            return None
        number = deaths.of_process + deaths.of_node
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:200]
        return Failed(f"its process died {number} times, the last time: {reason}; run again with fewer cells on a node")

    def _is_of_node(self, running: _Running, error: Exception) -> bool:
        """Return whether a task was lost because its node died, or a result because it lay there."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.NodeDiedError | exceptions.ObjectLostError):
            return True
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        self._looked = float("-inf")
        return running.node is not None and running.node not in alive

    def _read_letters(self, batch: _Batch) -> None:
        """Pass on what cells report, and keep their checkpoints."""
        try:
            letters: list[Letter] = self._ray.get(self._mailbox.collect.remote(), timeout=_PATIENCE)
        except self._ray.exceptions.RayError:
            return  # the mailbox begins anew
        by_name = {running.task.cell.id: running for running in batch.running.values()}
        for letter in letters:
            if (running := by_name.get(letter.name)) is not None:
                running.node = letter.node
                self._note(batch, running.task, letter.events, letter.checkpoint)

    def _note(self, batch: _Batch, task: Task, events: bytes, checkpoint: Any) -> None:
        for event in pickle.loads(events) if events else ():  # noqa: S301 - from our own cell
            batch.report(replace(event, cell=task.cell))
        if checkpoint is not None and task.checkpoints is not None:
            Checkpoints(task.checkpoints).put(checkpoint)

    def _stop(self, batch: _Batch) -> Iterator[tuple[Task, Result]]:
        """Ask every cell to stop, and yield what they leave until the grace is over."""
        end = time.monotonic() + _GRACE
        self._mailbox.stop.remote()
        self._read_letters(batch)
        while any(running.node for running in batch.running.values()) and time.monotonic() < end:
            yield from self._ended(batch)
        for order, running in batch.running.items():
            self._ray.cancel(order, force=True)
            yield running.task, Stopped()
        yield from ((task, Stopped()) for task in (*batch.again, *batch.tasks.rest()))


def _start_mailbox(ray: Any) -> Any:
    """Start the mailbox on the driver's node, where it lives as long as the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=beside)(Mailbox)
    return actor.remote()
