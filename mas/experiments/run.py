"""The main job: cells that are not done yet are trained; those first that choose settings."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from mas.benchmarks import fingerprint
from mas.experiments.cell import run_cell
from mas.experiments.cells import Cell, expand, trying_cells
from mas.experiments.config import Experiment, resolved
from mas.experiments.errors import UserError
from mas.experiments.results import Results, choices, read_results, read_tries, settled
from mas.experiments.store import Store

Announce = Callable[[Cell, dict[str, Any]], None]


@dataclass
class Outcome:
    """What a run came to."""

    results: Results
    kept: int  # cells that were finished before
    failed: list[str] = field(default_factory=list)  # one line for each cell that broke


def run_experiment(
    config: Experiment,
    folder: Path,
    workers: int | None = None,
    announce: Announce = lambda cell, result: None,
    begin: Callable[[int], None] = lambda kept: None,
) -> Outcome:
    """Train every cell of a config that ``folder`` does not hold yet: first those that choose settings.

    Args:
        config: from `load_config`.
        folder: for the results; finished cells in it are kept, others' results are refused.
        workers: processes; by default one per core. Results do not depend on it.
        announce: called with each cell as it ends.
        begin: called once, when the folder is accepted, with the number of cells that were finished before.

    Raises:
        UserError: the folder holds other results or cannot be written; there is no such device.
    """
    if config.training.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: found 'cuda', but torch sees no GPU here; set training.device=cpu")
    store, workers = Store(folder), workers or default_workers()
    tries = trying_cells(config)
    before = [*tries, *_to_report(config, store)]
    store.claim(resolved(config), before, _fingerprints(config))
    kept = sum(store.finished(cell) is not None for cell in before)
    begin(kept)
    failed = _train_all(tries, store, workers, announce)
    cells = _to_report(config, store)
    store.refuse_others(cells)
    failed += _train_all(settled(cells), store, workers, announce)
    results = read_results(config, store)
    if not failed:
        failed = [f"{x}: every value tried diverged; give others" for x in results.tries if x not in results.chosen]
    return Outcome(results, kept, failed)


def default_workers() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _to_report(config: Experiment, store: Store) -> list[Cell]:
    return expand(config, choices(config, read_tries(config, store)))


def _fingerprints(config: Experiment) -> dict[str, str]:
    options = config.benchmark.model_dump()
    specs = options["datasets"] if "datasets" in options else [options["dataset"]]
    return {spec if isinstance(spec, str) else json.dumps(spec): fingerprint(spec) for spec in specs}


def _train_all(cells: list[Cell], store: Store, workers: int, announce: Announce) -> list[str]:
    """Train and keep the cells that are not finished; give a line for each that broke."""
    failed = []
    for cell, result in _train([cell for cell in cells if store.finished(cell) is None], workers):
        if isinstance(result, str):
            failed.append(f"{cell.id}: {result}")
            announce(cell, {"status": "failed"})
            continue
        store.save(cell, result)
        announce(cell, result)
    return failed


def _train(cells: list[Cell], workers: int) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
    if min(workers, len(cells)) <= 1:
        for cell in cells:
            yield cell, _attempt(cell)
        return
    # spawn: a fork of a process that has used torch's threads can hang
    with ProcessPoolExecutor(min(workers, len(cells)), get_context("spawn"), _end_with_parent) as pool:
        futures = {pool.submit(_attempt, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps for lack of memory; "
                "finished cells are kept: run again with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when the run was killed: it would wait for work, and hold its memory, for ever."""
    parent = parent_process()

    def wait_for_end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


def _attempt(cell: Cell) -> dict[str, Any] | str:
    """Run a cell; say in words what broke, so that one cell does not stop the others."""
    try:
        return run_cell(cell)
    except UserError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - shown with the cell's name, and the run exits with 1
        return f"{type(error).__name__}: {error}"
