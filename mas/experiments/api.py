"""Experiments from Python: run a config, or load what a run has written, and get its tables and figures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mas.experiments.config.schema import Experiment
from mas.experiments.events import Progress, ignore
from mas.experiments.loggers.logger import Logger
from mas.experiments.loggers.telling import telling
from mas.experiments.read_config import load_config
from mas.experiments.registry import kind_of
from mas.experiments.report.sections import Headline
from mas.experiments.reporting import write_report
from mas.experiments.results import Results
from mas.experiments.runner import read_folder, run_experiment
from mas.experiments.shard import ShardDone, parse_shard
from mas.experiments.store import Store


@dataclass(frozen=True, repr=False)
class Run:
    """A run of an experiment: its config, and its tables and figures.

    Every table is an attribute: ``run.results`` (one row per accuracy), and by the kind of experiment
    ``run.summary``, ``run.comparisons``, ``run.selection``, ``run.curves``, ``run.traces``, ``run.scores``, ...;
    `tables` has all of them.

    Attributes:
        folder: that holds the run.
        config: typed, with every default.
        outcomes: the records of the cells, and what was chosen.
        failed: one line for each cell that broke.
        shard: how far a run of a share of the cells has come.
    """

    folder: Path
    config: Experiment
    outcomes: Results
    failed: tuple[str, ...] = ()
    shard: ShardDone | None = None

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table, by name."""
        return kind_of(self.config).tables(self.config, self.outcomes)

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Every figure, by name."""
        return kind_of(self.config).figures(self.config, self.tables)

    def figure(self, name: str) -> Figure:
        """Return a figure by name.

        Raises:
            KeyError: there is none of this name.
        """
        if name not in self.figures:
            raise KeyError(f"no figure {name!r}; this run has {', '.join(self.figures)}")
        return self.figures[name]

    def headline(self) -> Headline:
        """Return the table that the command line shows."""
        return kind_of(self.config).headline(self.config, self.tables)

    def report(self) -> Headline:
        """Write tables, figures and the page ``report.html`` into the folder; return their short form."""
        return write_report(Store(self.folder), self.config, self.outcomes)

    def __repr__(self) -> str:
        """Return a short form: the records of every cell would fill a notebook."""
        cells = f"{len(self.outcomes.records)} cells, {len(self.failed)} failed"
        return f"Run({str(self.folder)!r}: {self.config.experiment}, {cells})"

    def __dir__(self) -> list[str]:
        """Return the names to complete, tables among them."""
        return [*super().__dir__(), *self.tables]

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("_") or name in self.__dataclass_fields__:  # a copy that is not filled in yet has no tables
            raise AttributeError(name)
        if name not in self.tables:
            raise AttributeError(f"no table {name!r}; this run has {', '.join(self.tables)}")
        return self.tables[name]


def run(
    config: str | Path | Mapping[str, Any],
    changes: Mapping[str, Any] | Sequence[str] = (),
    *,
    output: str | Path,
    workers: int | None = None,
    data: str | Path | None = None,
    progress: Progress = ignore,
    shard: str | tuple[int, int] | None = None,
    extend: bool = False,
    engine: str = "local",
    address: str | None = None,
) -> Run:
    """Train every cell of a config that ``output`` does not hold yet, and write tables, figures and a report.

    Several processes may run one config on one folder: each cell is trained by one of them.

    Args:
        config: a YAML file, or the same as a dict.
        changes: values to change, such as ``{"training.epochs": 2}``.
        output: the folder for the results. A run that was stopped goes on where it was.
        workers: processes; by default one per core. Results do not depend on it.
        data: where data sets are; by default the config's ``data_root``, or ``MAS_DATA``.
        progress: called with `mas.experiments.Started` once, with `mas.experiments.CellStarted`,
            `mas.experiments.CellAt` now and then, and `mas.experiments.CellEnded` for each cell.
        shard: the share of the cells to train, such as ``(1, 3)`` or ``"1/3"``. The report is written by the run
            that finds all cells finished, by `Run.report`, or by `merge`.
        extend: add cells, such as further seeds, to a folder of a config that has fewer.
        engine: where cells are done: ``"local"``, processes on this machine, or ``"ray"``. Results do not depend on it.
        address: of a Ray cluster, such as ``"auto"`` or ``"ray://head:10001"``; by default Ray is started here.

    Returns:
        The run; cells that broke are in ``failed``.

    Raises:
        UserError: the config is wrong, or the folder holds something else.

    >>> run("configs/split_digits.yaml", {"seeds": 2}, output="runs/small").summary  # doctest: +SKIP
    """
    part = parse_shard(shard)
    loaded = load_config(config, _as_text(changes), Path(data) if data else None)
    own: dict[str, Any] = {"shard": part, "extend": extend, "engine": engine, "address": address}
    with telling(_loggers(loaded, Path(output)), progress) as tell:
        outcome = run_experiment(loaded, Path(output), workers, tell, **own)
    made = Run(Path(output), loaded, outcome.results, tuple(outcome.failed), outcome.shard)
    if outcome.results.records and not (outcome.shard and outcome.shard.left):
        made.report()
    return made


def _loggers(config: Experiment, folder: Path) -> dict[str, Callable[[], Logger]]:
    """Return what makes the loggers of a config, by name; they write below ``logs/``."""
    return {one.name: partial(one.entry, folder / "logs", **one.arguments()) for one in config.logging}


def _as_text(changes: Mapping[str, Any] | Sequence[str]) -> Sequence[str]:
    """Return changes as the command line takes them; JSON is YAML, and keeps None, "3" and "a: b" what they are."""
    if not isinstance(changes, Mapping):
        return changes
    return [f"{key}={json.dumps(value, default=_plain_value, ensure_ascii=False)}" for key, value in changes.items()]


def load(folder: str | Path) -> Run:
    """Return the run that a folder holds, as far as its cells are finished.

    Raises:
        UserError: ``mas run`` has not written it.
    """
    return Run(Path(folder), *read_folder(Path(folder)))


def _plain_value(value: Any) -> Any:
    """Return a value that JSON does not know as one that it does: NumPy's numbers, paths."""
    return value.item() if hasattr(value, "item") else str(value)
