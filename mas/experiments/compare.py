"""Two runs side by side: what differs in their configs, and in the scores of strategies they share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mas.experiments.config.schema import Experiment
from mas.experiments.errors import UserError
from mas.experiments.kind import Kind
from mas.experiments.registry import KINDS, kind_of
from mas.experiments.report.sections import Table
from mas.experiments.report.text import p_value, percent
from mas.experiments.results import Results
from mas.experiments.runner import read_folder
from mas.experiments.store import Store

HEADINGS = ["strategy", "score", "difference", "seeds", "p", "p (Holm)"]


@dataclass(frozen=True)
class Comparison:
    """The comparison of two runs."""

    table: pd.DataFrame  # a row for each strategy and score that both have
    notes: list[str]  # a line for each setting that differs, and for strategies of only one run

    def shown(self) -> Table:
        """Return headings and rows that people read."""
        rows = []
        for row in self.table.itertuples():
            difference = percent(row.difference, row.ci_low, row.ci_high)
            seeds = str(row.n)
            rows.append([row.strategy, row.score, difference, seeds, p_value(row.p), p_value(row.p_holm)])
        return Table(HEADINGS, rows)


def compare_folders(first: Path, second: Path) -> Comparison:
    """Compare two folders that ``mas run`` has written.

    Raises:
        UserError: a folder is not of ``mas run``, the kinds differ or have no scores to compare, or the runs
            share no label or no seed.
    """
    (a_config, a), (b_config, b) = read_folder(first), read_folder(second)
    if a_config.experiment != b_config.experiment:
        raise UserError(f"{first} holds experiment: {a_config.experiment} and {second} {b_config.experiment}")
    a_labels, b_labels = ({r.label for r in results.records} for results in (a, b))
    if not a_labels & b_labels:
        raise UserError(
            f"{first} has {_listed(a_labels)} and {second} has {_listed(b_labels)}; no strategy of one label to compare"
        )
    table = _compare_function(kind_of(a_config))(a, b)
    if not table["n"].any():
        raise UserError(f"{first} and {second} share no seed that finished; only the same seeds can be paired")
    notes = list(_changes(_without_strategies(a_config), _without_strategies(b_config)))
    for label in sorted(a_labels & b_labels):
        notes += sorted(_changes(_cell_settings(a, label), _cell_settings(b, label), label))
    for folder, own in ((first, a_labels - b_labels), (second, b_labels - a_labels)):
        if own:
            notes.append(f"only in {folder}: {_listed(own)}")
    notes += _instruction_sets(first, a, second, b)
    return Comparison(table, notes)


def _instruction_sets(first: Path, a: Results, second: Path, b: Results) -> list[str]:
    """Return a line if two runs used other instruction sets; none where a run does not say which."""
    there, here = _capabilities(first, a), _capabilities(second, b)
    if not there or not here or there == here:
        return []
    return [
        f"instruction set: {', '.join(there)} → {', '.join(here)}; "
        "results are the same to the bit only for the same instruction set"
    ]


def _capabilities(folder: Path, results: Results) -> list[str]:
    """Return the instruction sets of the cells; those of the folder if cells do not say, as before 0.2."""
    cells = [r.provenance.environment.cpu_capability for r in results.records if r.provenance]
    if cells:
        return sorted(set(cells))
    known = Store(folder).read_json("environment.json", [], form=list[dict[str, Any]])
    return sorted({str(entry["cpu_capability"]) for entry in known if "cpu_capability" in entry})


def _compare_function(kind: Kind[Any]) -> Callable[[Results, Results], pd.DataFrame]:
    if kind.compare is None:
        others = ", ".join(other.name for other in KINDS.values() if other.compare is not None)
        raise UserError(f"runs of experiment: {kind.name} cannot be compared; only runs of experiment: {others}")
    return kind.compare


def _without_strategies(config: Experiment) -> dict[str, Any]:
    """Return a config without its strategies: the cells have them with the values that were chosen."""
    return {key: value for key, value in config.plain().items() if key != "strategies"}


def _cell_settings(results: Results, label: str) -> dict[str, Any]:
    """Return the strategy of a label and the way its values were chosen."""
    settings = next(r.cell.training for r in results.records if r.label == label)
    selection = settings.selection and settings.selection.model_dump()
    strategy: dict[str, Any] = settings.strategy.model_dump()
    return strategy | {"selection": selection}


def _listed(labels: set[str]) -> str:
    return ", ".join(sorted(labels)) or "no finished cell"


def _changes(a: Any, b: Any, key: str = "") -> Iterator[str]:
    """Yield a line for each setting that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in {**a, **b}:
            yield from _changes(a.get(name), b.get(name), f"{key}.{name}".lstrip("."))
    elif a != b:
        yield f"{key}: {a} → {b}"
