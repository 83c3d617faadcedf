"""The main job: cells that are not done yet are trained; those first that choose values."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mas.benchmarks import fingerprint
from mas.experiments.belonging import refuse_other_config
from mas.experiments.cell import Cell
from mas.experiments.config.schema import Experiment, StreamOptions, devices_of, parts_of, walk_plain
from mas.experiments.config.search import Choice
from mas.experiments.engines.engine import EngineOptions, OpenEngine
from mas.experiments.engines.registry import engine_named
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
    engine: str = "local",
    address: str | None = None,
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
        engine: where cells are done, see `mas.experiments.engines.registry`.
        address: of a cluster.

    Raises:
        UserError: the folder holds other results or cannot be written; there is no such device, engine or cluster.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers: found {workers}; allowed: at least 1, or None for one per core")
    store, data = Store(folder), _fingerprints(config)
    plan = Plan(config, store.read)
    if shard and plan.tuners:
        raise UserError("shard: a range is searched one batch after another; run without a shard, also several at once")
    options = _engine_options(config, workers, address, data)
    used = engine_named(engine, address)
    used.check(options)
    kept = _claim(plan, store, data, extend)
    every = plan.every_cell()
    if len(kept) == len(every):
        used = engine_named("local")  # there is nothing to do: no cluster is asked
    ids = shard.ids(plan) if shard else None
    with used.open(options) as opened, CellLocks(folder) as locks:
        own = frozenset(cell.id for cell in every) if ids is None else ids
        progress(Started(folder, len(kept & own), len(own) + plan.to_come, opened.workers))
        shared = SharedCells(store, locks, progress, kept)
        _try_values(plan, ids, shared, opened)
        cells = plan.cells(choices(plan, read_tries(plan, store)))
        for cell in _apart(plan, cells)[0]:
            store.remove(cell)
        store.refuse_others(cells)
        _train_all(share_of(cells, ids), shared, opened, keep_weights=config.keeps_weights)
    results, failed = read_results(config, store), shared.failed
    if not failed and shard is None:
        failed = [f"{x}: every value tried diverged; give others" for x in results.tries if x not in results.chosen]
    done = _shard_done(shard, plan, results, store) if shard else None
    return RunOutcome(results, len(kept), failed, done)


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
    plan = Plan(config, store.read)
    tries = read_tries(plan, store)
    chosen = choices(plan, tries)
    cells = sorted(plan.cells(chosen), key=lambda cell: plan.labels.index(cell.label))
    _, cells = _apart(plan, cells)
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


def _engine_options(
    config: Experiment, workers: int | None, address: str | None, data: dict[str, str]
) -> EngineOptions:
    plain = config.plain()
    own = [value for place, value in walk_plain(plain) if place[-1] == "function" and isinstance(value, str)]
    return EngineOptions(workers, address, config.resources, devices_of(plain), own, data)


def _claim(plan: Plan, store: Store, data: dict[str, str], extend: bool) -> frozenset[str]:
    """Take the folder for the cells of a plan; return the ids of those that are finished already."""
    chosen = choices(plan, read_tries(plan, store)) if store.folder.is_dir() else {}
    superseded, to_report = _apart(plan, plan.cells(chosen))
    waiting = [*plan.waiting(chosen), *superseded]
    cells = [*plan.trying_cells(), *to_report]
    if plan.config.keeps_weights:
        store.refuse_without_weights(to_report)
    store.refuse(cells, waiting, data)
    refuse_other_config(store, plan, extend=extend)
    kept = frozenset(cell.id for cell in cells if store.has(cell))
    with store.exclusive("folder"):
        refuse_other_config(store, plan, extend=extend)  # another process may have taken the folder meanwhile
        store.claim(plan.config.plain(), data, trains=bool(waiting) or len(kept) < len(cells))
    return kept


def _apart(plan: Plan, cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Return the cells whose records have a value that was chosen before more were tried, and the others."""
    superseded = [cell for cell in cells if plan.superseded(cell)]
    return superseded, [cell for cell in cells if cell not in superseded]


def _try_values(plan: Plan, ids: frozenset[str] | None, shared: SharedCells, engine: OpenEngine) -> None:
    """Train the cells that try values; of a range, batch after batch."""
    begun: set[str] = set()
    while cells := [cell for cell in share_of(plan.trying_cells(), ids) if cell.id not in begun]:
        _train_all(cells, shared, engine)
        begun |= {cell.id for cell in cells}


def _fingerprints(config: Experiment) -> dict[str, str]:
    streams = [stream for own in config.each for _, stream in parts_of(own, StreamOptions)]
    specs = [spec for stream in streams for spec in stream.datasets_used().values()]
    return {spec if isinstance(spec, str) else json.dumps(spec): fingerprint(spec) for spec in specs}


def _train_all(cells: Sequence[Cell], shared: SharedCells, engine: OpenEngine, keep_weights: bool = False) -> None:
    """Train and keep the cells that are not finished, beside other processes on the folder."""
    queue = shared.queue(cells, keep_weights=keep_weights)
    for task, result in engine.run(queue, shared.report):
        shared.end(queue, task, result)
    if shared.stopped:
        raise KeyboardInterrupt


def _shard_done(shard: Shard, plan: Plan, results: Results, store: Store) -> ShardDone:
    every, own = plan.every_cell(), shard.ids(plan)
    finished = {cell.id for cell in every if store.has(cell)}
    waiting = {cell.id for cell in plan.waiting(results.chosen)}
    return ShardDone(shard, len(own & finished), len(own), len(own & waiting - finished), len(every) - len(finished))
