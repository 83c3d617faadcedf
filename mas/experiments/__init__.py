"""Experiments: YAML in, results and report out.

>>> import mas
>>> run = mas.experiments.run("configs/split_digits.yaml", {"seeds": 2}, output="runs/small")  # doctest: +SKIP
>>> run.summary, run.figure("accuracy_over_stream")  # doctest: +SKIP

A config's way: `read_config` validates a file into a typed config; the kind of experiment (`kinds`) plans
its runs, and `plan` makes cells of them; `training` trains one cell, and `store` keeps its record;
the kind makes tables of all records, and `reporting` writes them. `runner` ties these together.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mas.experiments.api import Run as Run
    from mas.experiments.api import load as load
    from mas.experiments.api import run as run
    from mas.experiments.embedding_file import load_embeddings as load_embeddings
    from mas.experiments.errors import UserError as UserError
    from mas.experiments.events import CellAt as CellAt
    from mas.experiments.events import CellEnded as CellEnded
    from mas.experiments.events import CellStarted as CellStarted
    from mas.experiments.events import CellTested as CellTested
    from mas.experiments.events import EpochEnded as EpochEnded
    from mas.experiments.events import Started as Started
    from mas.experiments.maintenance.clean import clean as clean
    from mas.experiments.maintenance.merge import merge as merge
    from mas.experiments.maintenance.status import status as status
    from mas.experiments.maintenance.verify import verify as verify

_HOME = {
    "run": "mas.experiments.api",
    "load": "mas.experiments.api",
    "Run": "mas.experiments.api",
    "load_embeddings": "mas.experiments.embedding_file",
    "Started": "mas.experiments.events",
    "CellEnded": "mas.experiments.events",
    "CellStarted": "mas.experiments.events",
    "CellAt": "mas.experiments.events",
    "EpochEnded": "mas.experiments.events",
    "CellTested": "mas.experiments.events",
    "UserError": "mas.experiments.errors",
    "status": "mas.experiments.maintenance.status",
    "clean": "mas.experiments.maintenance.clean",
    "merge": "mas.experiments.maintenance.merge",
    "verify": "mas.experiments.maintenance.verify",
}

__all__ = [*_HOME]  # noqa: PLE0604 - the table above is the single list of names

# Avalanche imports a solver package that warns, in every process, of solvers nothing here uses.
warnings.filterwarnings("ignore", message="no QP solver found", module="qpsolvers")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mas.experiments' has no attribute {name!r}")
