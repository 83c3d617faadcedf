"""Run one sweep on every engine, compare the results byte by byte, and state what each costs per cell.

Usage: python -m tools.scaling [--output FILE.md] [--cells 10000]

The table is of one sweep of small cells: on 1 worker, 2 workers, Ray on this machine, a Ray cluster of two node
processes of which one is killed in the middle, and 3 shards. With ``--cells N``, N cells that do nothing go
through each engine: what is left is the engine's own cost, and the memory of the driver.
"""

import argparse
import json
import multiprocessing
import os
import resource
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mas import experiments
from mas.experiments.cell import Cell, CellSettings
from mas.experiments.config.schema import STREAM_MODELS
from mas.experiments.context import CellContext
from mas.experiments.engines.engine import EngineOptions
from mas.experiments.engines.registry import engine_named
from mas.experiments.engines.task import Task, TaskQueue
from mas.experiments.events import CellEnded, Event
from mas.experiments.jobs import JOBS
from mas.experiments.locks import CellLocks
from mas.experiments.record import Outcome
from mas.experiments.shared import SharedCells
from mas.experiments.store import Store
from mas.experiments.training import Trained
from tools.node_processes import NodeProcesses, node_processes

STRATEGIES = ("naive", "mas", "ewc", "si", "lwf", "replay")
SEEDS = 10
SWEEP: dict[str, Any] = {
    "experiment": "forgetting",
    "benchmark": {"stream": "split", "dataset": {"name": "digits", "train": 600}, "experiences": 5},
    "model": {"name": "mlp", "hidden": [32]},
    "training": {"epochs": 4, "batch_size": 32},
    "strategies": [{"name": name} for name in STRATEGIES],
    "seeds": SEEDS,
}


@dataclass(frozen=True)
class Measured:
    """One way to run the sweep.

    Attributes:
        way: in words.
        workers: cells at a time.
        seconds: from the call to the return.
        of_cells: the sum over cells.
        results: the content of ``results.csv``.
    """

    way: str
    workers: int
    seconds: float
    of_cells: float
    results: bytes

    @property
    def per_cell(self) -> float:
        """Seconds a cell that were not spent in cells: starting processes, sending, storing, the report."""
        return (self.seconds - self.of_cells / self.workers) / (len(STRATEGIES) * SEEDS)


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.scaling", description=__doc__)
    parser.add_argument("--output", type=Path, help="a Markdown file; by default the tables are printed")
    parser.add_argument("--cells", type=int, help="send as many empty cells through each engine instead")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # one for every Ray that this process meets
    with tempfile.TemporaryDirectory() as folder:
        text = empty_table(options.cells, Path(folder)) if options.cells else sweep_table(Path(folder))
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


def sweep_table(folder: Path) -> str:
    """Return the table of the sweep on every engine."""
    ways = list(_ways(folder))
    lines = [
        "| engine | cells at a time | wall time, s | overhead a cell, ms | results.csv |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way in ways:
        same = "identical" if way.results == ways[0].results else "DIFFERENT"
        lines.append(f"| {way.way} | {way.workers} | {way.seconds:.1f} | {1000 * way.per_cell:.0f} | {same} |")
    return "\n".join(lines)


def _ways(folder: Path) -> Iterator[Measured]:
    run = experiments.run
    yield measure("one worker", 1, folder / "one", lambda own: run(SWEEP, workers=1, **own))
    yield measure("two workers", 2, folder / "two", lambda own: run(SWEEP, workers=2, **own))
    yield measure("Ray on one machine", 2, folder / "ray", lambda own: run(SWEEP, engine="ray", workers=2, **own))
    with node_processes() as cluster, environment(cluster):
        yield measure("Ray, two nodes, one killed", 2, folder / "nodes", lambda own: _run_and_kill(cluster, own))
    yield measure("three shards, one after another", 1, folder / "shards", _run_shards)


def measure(way: str, workers: int, folder: Path, run: Callable[[dict[str, Any]], Any]) -> Measured:
    """Run the sweep in one way."""
    of_cells = 0.0

    def add(event: Event) -> None:
        nonlocal of_cells
        if isinstance(event, CellEnded):
            of_cells += event.seconds or 0.0

    begun = time.perf_counter()
    run({"output": folder, "progress": add})
    seconds = time.perf_counter() - begun
    sys.stderr.write(f"{way}: {seconds:.1f} s\n")
    return Measured(way, workers, seconds, of_cells, (folder / "results.csv").read_bytes())


def _run_and_kill(cluster: NodeProcesses, own: dict[str, Any]) -> None:
    """Run the sweep on a cluster; kill the second node when half of the cells are done."""
    show, done = own.pop("progress"), 0

    def kill_in_the_middle(event: Event) -> None:
        nonlocal done
        show(event)
        done += isinstance(event, CellEnded)
        if done == len(STRATEGIES) * SEEDS // 2 and isinstance(event, CellEnded):
            threading.Thread(target=cluster.kill_node, args=(1,)).start()

    experiments.run(SWEEP, engine="ray", address=cluster.address, progress=kill_in_the_middle, **own)


def _run_shards(own: dict[str, Any]) -> None:
    for number in (1, 2, 3):
        experiments.run(SWEEP, shard=(number, 3), workers=1, **own)


@contextmanager
def environment(cluster: NodeProcesses) -> Iterator[None]:
    """Let this process in to a cluster."""
    before = dict(os.environ)
    os.environ.update(cluster.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class EmptySettings(CellSettings):
    """The settings of a cell that does nothing."""


def do_nothing(cell: Cell, keep_weights: bool, context: CellContext) -> Trained:
    """Return an outcome of the usual size, of five experiences."""
    row: list[float | None] = [0.5] * 5
    return Trained(Outcome(untrained=[0.5] * 5, accuracy=[row] * 5, seconds=0.0))


JOBS[EmptySettings] = do_nothing  # also in workers, which import this module to read the settings


def empty_table(count: int, folder: Path) -> str:
    """Return the table of what each engine costs for cells that do nothing."""
    lines = [
        f"| {count:,} empty cells on | cells a second | ms a cell | driver's memory at the start, MB | at most, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for engine, workers in (("local", 1), ("local", 2), ("ray", 2)):
        found = _in_own_process(engine, workers, count, folder / f"{engine}{workers}")
        name = f"{engine}, {workers} worker{'s' if workers > 1 else ''}"
        lines.append(
            f"| {name} | {count / found['seconds']:.0f} | {1000 * found['seconds'] / count:.1f} "
            f"| {found['before'] / 1e6:.0f} | {found['peak'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def _in_own_process(engine: str, workers: int, count: int, folder: Path) -> dict[str, float]:
    """Measure in a process of its own: the peak of memory is a process's."""
    answer = folder.with_suffix(".json")
    process = multiprocessing.get_context("spawn").Process(
        target=_measure_empty, args=(engine, workers, count, folder, answer)
    )
    process.start()
    process.join()
    found: dict[str, float] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def _measure_empty(engine: str, workers: int, count: int, folder: Path, answer: Path) -> None:
    benchmark = STREAM_MODELS["split"].model_validate(SWEEP["benchmark"])
    settings = EmptySettings(experiment="empty", benchmark=benchmark)
    cells = [Cell(f"empty{number // 1000}", number % 1000, settings) for number in range(count)]
    store = Store(folder)
    with store.exclusive("folder"):
        store.claim({}, {}, trains=True)
    with engine_named(engine).open(EngineOptions(workers)) as opened, CellLocks(folder) as locks:
        shared = SharedCells(store, locks, lambda event: None)
        queue = shared.queue(cells, keep_weights=False)
        warm_up = TaskQueue([Task(Cell("warm", n, settings), False, None) for n in range(workers)])
        list(opened.run(warm_up, lambda event: None))
        before, begun = psutil.Process().memory_info().rss, time.perf_counter()
        for task, result in opened.run(queue, shared.report):
            shared.end(queue, task, result)
        seconds = time.perf_counter() - begun
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.write_text(json.dumps({"seconds": seconds, "before": before, "peak": peak}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    from tools.scaling import main as imported_main  # so that classes have names that workers can import

    imported_main()
