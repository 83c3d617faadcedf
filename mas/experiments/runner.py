"""The main job: cells that are not done yet are trained; those first that choose values."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mas.benchmarks import fingerprint
from mas.experiments.belonging import refuse_other_config
from mas.experiments.cell import Cell
from mas.experiments.config.schema import Experiment, StreamOptions, devices_of, parts_of
from mas.experiments.config.search import Choice
from mas.experiments.engines.local import run_local
from mas.experiments.errors import UserError
from mas.experiments.events import Progress, Started, ignore
from mas.experiments.locks import CellLocks
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.results import Results, Tried, best
from mas.experiments.shard import Shard, ShardDone, share_of
from mas.experiments.shared import SharedCells
from mas.experiments.store import Store


@dataclass
class RunOutcome:
    """The outcome of a run."""

    results: Results
    kept: int  # cells that were finished before
    failed: list[str] = field(default_factory=list)  # one line for each cell that broke
    shard: ShardDone | None = None  # of a run of a share of the cells


def run_experiment(
    config: Experiment,
    folder: Path,
    workers: int | None = None,
    progress: Progress = ignore,
    *,
    shard: Shard | None = None,
    extend: bool = False,
) -> RunOutcome:
    """Train every cell of a config that ``folder`` does not hold yet: first those that choose values.

    Several processes may run one config on one folder: each cell is trained by one of them.

    Args:
        config: from `mas.experiments.read_config.load_config`.
        folder: for the results; finished cells in it are kept, others' results are refused.
        workers: processes; by default one per core. Results do not depend on it.
        progress: called with each event, see `mas.experiments.events`.
        shard: the share of the cells to train; by default all.
        extend: add cells to a folder of a config that has fewer.

    Raises:
        UserError: the folder holds other results or cannot be written; there is no such device.
    """
    for device in devices_of(config.plain()):
        _check_device(device)
    if workers is not None and workers < 1:
        raise UserError(f"workers: found {workers}; allowed: at least 1, or None for one per core")
    plan, store, workers = Plan(config), Store(folder), workers or default_workers()
    kept = _claim(plan, store, extend)
    ids = shard.ids(plan) if shard else None
    own = ids if ids is not None else frozenset(cell.id for cell in plan.every_cell())
    progress(Started(folder, len(kept & own), len(own), workers))
    with CellLocks(folder) as locks:
        shared = SharedCells(store, locks, progress, kept)
        _train_all(share_of(plan.trying_cells(), ids), shared, workers)
        cells = plan.cells(choices(plan, read_tries(plan, store)))
        store.refuse_others(cells)
        _train_all(share_of(cells, ids), shared, workers, keep_weights=config.keeps_weights)
    results, failed = read_results(config, store), shared.failed
    if not failed and shard is None:
        failed = [f"{x}: every value tried diverged; give others" for x in results.tries if x not in results.chosen]
    done = _shard_done(shard, plan, results, store) if shard else None
    return RunOutcome(results, len(kept), failed, done)


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


def _claim(plan: Plan, store: Store, extend: bool) -> frozenset[str]:
    """Take the folder for the cells of a plan; return the ids of those that are finished already."""
    chosen = choices(plan, read_tries(plan, store)) if store.folder.is_dir() else {}
    to_report, waiting = plan.cells(chosen), plan.waiting(chosen)
    cells = [*plan.trying_cells(), *to_report]
    if plan.config.keeps_weights:
        store.refuse_without_weights(to_report)
    data = _fingerprints(plan.config)
    store.refuse(cells, waiting, data)
    refuse_other_config(store, plan, extend=extend)
    kept = frozenset(cell.id for cell in cells if store.has(cell))
    with store.exclusive("folder"):
        refuse_other_config(store, plan, extend=extend)  # another process may have taken the folder meanwhile
        store.claim(plan.config.plain(), data, trains=bool(waiting) or len(kept) < len(cells))
    return kept


def _fingerprints(config: Experiment) -> dict[str, str]:
    streams = [stream for own in config.each for _, stream in parts_of(own, StreamOptions)]
    specs = [spec for stream in streams for spec in stream.datasets_used().values()]
    return {spec if isinstance(spec, str) else json.dumps(spec): fingerprint(spec) for spec in specs}


def _train_all(cells: Sequence[Cell], shared: SharedCells, workers: int, keep_weights: bool = False) -> None:
    """Train and keep the cells that are not finished, beside other processes on the folder."""
    queue = shared.queue(cells, keep_weights=keep_weights)
    for task, result in run_local(queue, workers, shared.report):
        shared.end(queue, task, result)
    if shared.stopped:
        raise KeyboardInterrupt


def _shard_done(shard: Shard, plan: Plan, results: Results, store: Store) -> ShardDone:
    every, own = plan.every_cell(), shard.ids(plan)
    finished = {cell.id for cell in every if store.has(cell)}
    waiting = {cell.id for cell in plan.waiting(results.chosen)}
    return ShardDone(shard, len(own & finished), len(own), len(own & waiting - finished), len(every) - len(finished))
