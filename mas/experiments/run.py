"""The main job: cells that are not done yet are trained, then the report is made."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from mas.experiments.cell import run_cell
from mas.experiments.cells import Cell, expand
from mas.experiments.config import Forgetting, resolved
from mas.experiments.errors import UserError
from mas.experiments.store import Store

Announce = Callable[[Cell, dict[str, Any]], None]


@dataclass
class Outcome:
    """What a run came to."""

    records: list[dict[str, Any]]
    kept: int  # cells that were finished before
    failed: list[str] = field(default_factory=list)  # one line for each cell that broke


def run_experiment(
    config: Forgetting, folder: Path, workers: int | None = None, announce: Announce = lambda cell, result: None
) -> Outcome:
    """Train every cell of a config that ``folder`` does not hold yet.

    Args:
        config: from `load_config`.
        folder: for the results; finished cells in it are kept, others' results are refused.
        workers: processes; by default one per core. Results do not depend on it.
        announce: called with each cell as it ends.

    Raises:
        UserError: the folder holds other results or cannot be written; there is no such device.
    """
    if config.training.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: found 'cuda', but torch sees no GPU here; set training.device=cpu")
    cells, store = expand(config), Store(folder)
    store.claim(resolved(config), cells)
    open_cells = [cell for cell in cells if store.finished(cell) is None]
    outcome = Outcome([], kept=len(cells) - len(open_cells))
    for cell, result in _train(open_cells, workers or default_workers()):
        if isinstance(result, str):
            outcome.failed.append(f"{cell.id}: {result}")
            announce(cell, {"status": "failed"})
            continue
        store.save(cell, result)
        announce(cell, result)
    outcome.records = read_records(config, store)
    return outcome


def read_records(config: Forgetting, store: Store) -> list[dict[str, Any]]:
    """Give what the finished cells of a config gave, in the config's order."""
    cells = sorted(expand(config), key=lambda cell: config.labels().index(cell.label))
    return [record for cell in cells if (record := store.finished(cell))]


def default_workers() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train(cells: list[Cell], workers: int) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
    if min(workers, len(cells)) <= 1:
        for cell in cells:
            yield cell, _attempt(cell)
        return
    # spawn: a fork of a process that has used torch's threads can hang
    with ProcessPoolExecutor(min(workers, len(cells)), get_context("spawn")) as pool:
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


def _attempt(cell: Cell) -> dict[str, Any] | str:
    """Run a cell; say in words what broke, so that one cell does not stop the others."""
    try:
        return run_cell(cell)
    except UserError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - shown with the cell's name, and the run exits with 1
        return f"{type(error).__name__}: {error}"
