"""The main job: cells that are not done yet are trained; those first that choose values."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mas.benchmarks import fingerprint
from mas.experiments.cell import Cell
from mas.experiments.config.schema import Experiment, StreamOptions, devices_of, parts_of
from mas.experiments.config.search import Choice
from mas.experiments.engines.local import run_local
from mas.experiments.engines.task import Failed, Stopped, Task, TaskQueue
from mas.experiments.errors import UserError
from mas.experiments.events import CellEnded, Progress, Started, ignore
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.results import Results, Tried, best
from mas.experiments.store import Store


@dataclass
class RunOutcome:
    """The outcome of a run."""

    results: Results
    kept: int  # cells that were finished before
    failed: list[str] = field(default_factory=list)  # one line for each cell that broke


def run_experiment(
    config: Experiment, folder: Path, workers: int | None = None, progress: Progress = ignore
) -> RunOutcome:
    """Train every cell of a config that ``folder`` does not hold yet: first those that choose values.

    Args:
        config: from `mas.experiments.read_config.load_config`.
        folder: for the results; finished cells in it are kept, others' results are refused.
        workers: processes; by default one per core. Results do not depend on it.
        progress: called with each event, see `mas.experiments.events`.

    Raises:
        UserError: the folder holds other results or cannot be written; there is no such device.
    """
    for device in devices_of(config.plain()):
        _check_device(device)
    if workers is not None and workers < 1:
        raise UserError(f"workers: found {workers}; allowed: at least 1, or None for one per core")
    plan, store, workers = Plan(config), Store(folder), workers or default_workers()
    kept = _claim(plan, store)
    progress(Started(folder, kept, len(plan.every_cell()), workers))
    failed = _train_all(plan.trying_cells(), store, workers, progress)
    chosen = choices(plan, read_tries(plan, store))
    cells = plan.cells(chosen)
    store.refuse_others(cells)
    failed += _train_all(cells, store, workers, progress, keep_weights=config.keeps_weights)
    results = read_results(config, store)
    if not failed:
        failed = [f"{x}: every value tried diverged; give others" for x in results.tries if x not in results.chosen]
    return RunOutcome(results, kept, failed)


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_folder(folder: Path) -> tuple[Experiment, Results]:
    """Return config and results of a folder that ``mas run`` has written.

    Raises:
        UserError: it is none, or it was written by another version of this library.
    """
    store = Store(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: holds no config.yaml; expected a folder that mas run has written")
    config = load_config(folder / "config.yaml", try_data=False)
    return config, read_results(config, store)


def read_results(config: Experiment, store: Store) -> Results:
    """Return what the finished cells of a config left, in the config's order.

    Raises:
        UserError: cells of these names were run with other settings.
    """
    plan = Plan(config)
    tries = read_tries(plan, store)
    chosen = choices(plan, tries)
    cells = sorted(plan.cells(chosen), key=lambda cell: plan.labels.index(cell.label))
    store.refuse_others(cells, plan.waiting(chosen))
    records = [record for cell in cells if (record := store.read(cell))]
    return Results(records, tries, chosen)


def read_tries(plan: Plan, store: Store) -> dict[str, list[Tried]]:
    """Return, by label, each choice with the records of its finished cells."""
    return {
        label: [Tried(one.choice, [r for cell in one.cells if (r := store.read(cell))]) for one in tries]
        for label, tries in plan.tries.items()
    }


def choices(plan: Plan, tries: dict[str, list[Tried]]) -> dict[str, Choice]:
    """Return, by label, the best choice, where every try is finished and not each one diverged."""
    chosen = {}
    for label, own in tries.items():
        expected = [len(one.cells) for one in plan.tries[label]]
        complete = [len(tried.records) for tried in own] == expected
        if complete and (choice := best(own)) is not None:
            chosen[label] = choice
    return chosen


def _check_device(device: str) -> None:
    """Raise UserError if torch does not see a device."""
    kind, _, number = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"training.device: found {device!r}, but torch sees no GPU here; set training.device=cpu")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        last = f"cuda:{torch.cuda.device_count() - 1}"
        raise UserError(f"training.device: found {device!r}, but the last GPU here is {last}; set that")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("training.device: found 'mps', but torch cannot use it here; set training.device=cpu")


def _claim(plan: Plan, store: Store) -> int:
    """Take the folder for the cells of a plan; return how many of them are finished already."""
    chosen = choices(plan, read_tries(plan, store)) if store.folder.is_dir() else {}
    to_report, waiting = plan.cells(chosen), plan.waiting(chosen)
    cells = [*plan.trying_cells(), *to_report]
    if plan.config.keeps_weights:
        store.refuse_without_weights(to_report)
    store.claim(plan.config.plain(), cells, waiting, _fingerprints(plan.config))
    return sum(store.read(cell) is not None for cell in cells)


def _fingerprints(config: Experiment) -> dict[str, str]:
    streams = [stream for _, stream in parts_of(config, StreamOptions)]
    specs = [spec for stream in streams for spec in stream.datasets_used().values()]
    return {spec if isinstance(spec, str) else json.dumps(spec): fingerprint(spec) for spec in specs}


def _train_all(
    cells: Sequence[Cell], store: Store, workers: int, progress: Progress, keep_weights: bool = False
) -> list[str]:
    """Train and keep the cells that are not finished; return a line for each that broke."""
    failed = []
    stopped = 0
    missing = [cell for cell in cells if store.read(cell) is None]
    tasks = [Task(cell, keep_weights, store.checkpoints(cell)) for cell in missing]
    for task, result in run_local(TaskQueue(tasks), workers, progress):
        cell = task.cell
        if isinstance(result, Stopped):
            stopped += 1
        elif isinstance(result, Failed):
            failed.append(f"{cell.id}: {result.reason}")
            progress(CellEnded(cell, "failed", result.reason))
        else:
            outcome = result.outcome
            store.save(cell, outcome, result.weights, result.provenance)
            progress(CellEnded(cell, outcome.status, outcome.reason, outcome.seconds))
    if stopped:
        raise KeyboardInterrupt
    return failed
