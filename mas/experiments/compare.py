"""Two runs side by side: what differs in their configs, and in the scores of strategies they share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mas.experiments.config import Forgetting, resolved
from mas.experiments.errors import UserError
from mas.experiments.report.pages import number, percent
from mas.experiments.results import Results, read_folder
from mas.experiments.summary import compare_runs

HEADINGS = ["strategy", "score", "difference", "seeds", "p", "p (Holm)"]


@dataclass
class Comparison:
    """Of two runs."""

    table: pd.DataFrame  # of `mas.experiments.summary.compare_runs`
    notes: list[str]  # a line for each setting that differs, and for strategies of only one run


def compare_folders(first: Path, second: Path) -> Comparison:
    """Compare two folders that ``mas run`` has written.

    Raises:
        UserError: one of them is none, or they share no strategy, or no seed.
    """
    (a_config, a), (b_config, b) = _read(first), _read(second)
    a_labels, b_labels = ({r["label"] for r in results.records} for results in (a, b))
    if not a_labels & b_labels:
        raise UserError(
            f"{first} has {_listed(a_labels)} and {second} has {_listed(b_labels)}; no strategy of one label to compare"
        )
    table = compare_runs(a.records, b.records)
    if not table["n"].any():
        raise UserError(f"{first} and {second} share no seed that finished; only the same seeds can be paired")
    only = [f"only in {f}: {_listed(x)}" for f, x in ((first, a_labels - b_labels), (second, b_labels - a_labels)) if x]
    del a_config["strategies"], b_config["strategies"]  # those of the cells say what was chosen too
    changes = [line for label in a_labels & b_labels for line in _changes(_told(a, label), _told(b, label), label)]
    return Comparison(table, [*_changes(a_config, b_config), *sorted(changes), *only])


def comparison_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Give headings and rows of the table that people read."""
    rows = [
        [
            r.strategy,
            r.score,
            percent(r.difference, r.ci_low, r.ci_high),
            str(r.n),
            number(r.p, form=".2g"),
            number(r.p_holm, form=".2g"),
        ]
        for r in comparison.table.itertuples()
    ]
    return HEADINGS, rows


def _read(folder: Path) -> tuple[dict[str, Any], Results]:
    config, results = read_folder(folder)
    if not isinstance(config, Forgetting):
        raise UserError(f"{folder}: holds experiment: {config.experiment}; only runs of experiment: forgetting compare")
    return resolved(config), results


def _listed(labels: set[str]) -> str:
    return ", ".join(sorted(labels)) or "no finished cell"


def _told(results: Results, label: str) -> dict[str, Any]:
    settings = next(r["settings"] for r in results.records if r["label"] == label)
    return settings["strategy"] | {"selection": settings.get("selection")}


def _changes(a: Any, b: Any, key: str = "") -> list[str]:
    """Give a line for each setting that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [line for k in {**a, **b} for line in _changes(a.get(k), b.get(k), f"{key}.{k}".lstrip("."))]
    return [f"{key}: {a} → {b}"] if a != b else []
