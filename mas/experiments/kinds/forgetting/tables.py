"""Tables of forgetting: accuracies, scores, comparisons, and how values were chosen."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mas.experiments.config.search import Choice
from mas.experiments.kinds.forgetting.config import Forgetting
from mas.experiments.kinds.forgetting.scores import comparison_table
from mas.experiments.record import CellRecord
from mas.experiments.results import Results, Tried
from mas.experiments.scores import summary_table
from mas.experiments.tables import results_table
from mas.experiments.traces import probes_table, trace_table

SELECTION_COLUMNS = ["strategy", "value", "seed", "experience", "status", "ACC", "seconds", "chosen"]


def tables(config: Forgetting, results: Results) -> dict[str, pd.DataFrame]:
    """Return every table of a run."""
    records = results.records
    made = {
        "results": results_table(records),
        "summary": summary_table(records),
        "comparisons": comparison_table(records),
        "selection": selection_table(results),
    }
    if any(record.outcome.probes for record in records):
        made |= {"probes": probes_table(records), "traces": trace_table(records)}
    return made


def selection_table(results: Results) -> pd.DataFrame:
    """Return every try and what it cost, columns `SELECTION_COLUMNS`.

    Values chosen from a list have a row per (strategy, value, seed), with the final ``ACC``. Strengths
    chosen continually have a row per (strategy, seed, experience, strength); their ``ACC`` is the
    accuracy on the experience's held-out data.
    """
    rows = [*_listed_rows(results), *_continual_rows(results.records)]
    table = pd.DataFrame(rows, columns=SELECTION_COLUMNS)
    return table.astype({"experience": "Int64", "chosen": bool})


Row = tuple[str, str, int, int | None, str, float, float, bool]


def _listed_rows(results: Results) -> list[Row]:
    return [
        row
        for label, tries in results.tries.items()
        for tried in tries
        for row in _tried_rows(label, tried, results.chosen.get(label))
    ]


def _tried_rows(label: str, tried: Tried, chosen: Choice | None) -> list[Row]:
    rows: list[Row] = []
    value = str(tried.choice)
    is_chosen = tried.choice == chosen
    for record in tried.records:
        outcome = record.outcome
        acc = outcome.final_acc()
        rows.append((label, value, record.seed, None, outcome.status, acc, outcome.seconds, is_chosen))
    return rows


def _continual_rows(records: Sequence[CellRecord]) -> list[Row]:
    rows: list[Row] = []
    for record in records:
        for experience, tries in enumerate(record.outcome.tries):
            for one in tries:
                status = "diverged" if math.isnan(one.accuracy) else "finished"
                value = f"lam={one.strength!r}"
                taken = one is tries[-1]
                rows.append((record.label, value, record.seed, experience, status, one.accuracy, one.seconds, taken))
    return rows


def chosen_rows(selection: pd.DataFrame) -> pd.DataFrame:
    """Return a row per value of a list: strategy, value, ACC (mean), seconds, chosen, remark.

    The remark notes a chosen number that is the least or the greatest tried, and other values with
    the same ACC.
    """
    rows = []
    for label, own in selection[selection["experience"].isna()].groupby("strategy", sort=False):
        means = own.groupby("value", sort=False)["ACC"].mean()
        means[own[own["ACC"].isna()]["value"].unique()] = np.nan  # diverged with a seed
        for value, acc in means.items():
            its = own[own["value"] == value]
            chosen = bool(its["chosen"].all())
            remark = _remark(str(value), [str(v) for v in means.index], (means == acc).sum()) if chosen else ""
            rows.append((label, value, acc, its["seconds"].sum(), chosen, remark))
    return pd.DataFrame(rows, columns=["strategy", "value", "ACC", "seconds", "chosen", "remark"])


def tuned_rows(selection: pd.DataFrame) -> pd.DataFrame:
    """Return a row per (strategy, experience) of what was chosen continually: the value for each seed, and the cost."""
    continual = selection[selection["experience"].notna()]
    rows = []
    for (label, experience), own in continual.groupby(["strategy", "experience"], sort=False):
        taken = own[own["chosen"]]
        values = [f"{seed}: {_strength(value):.3g}" for seed, value in zip(taken["seed"], taken["value"], strict=True)]
        rows.append((label, experience, ", ".join(values), len(own) / own["seed"].nunique(), own["seconds"].sum()))
    return pd.DataFrame(rows, columns=["strategy", "experience", "values", "tries", "seconds"])


def _strength(value: str) -> float:
    return float(value.partition("=")[2])


def _remark(chosen: str, tried: Sequence[str], as_good: int) -> str:
    every = [_options(value) for value in tried]
    remarks = []
    for name, own in _options(chosen).items():
        number = _number(own)
        numbers = [found for options in every if (found := _number(options.get(name, ""))) is not None]
        several = len(set(numbers)) > 1
        if several and number in (min(numbers), max(numbers)):
            remarks.append(f"{name} at an end of what was tried: better values may lie beyond")
    if as_good > 1:
        remarks.append(f"{as_good} did as well")
    return "; ".join(remarks)


def _options(value: str) -> dict[str, str]:
    """Return the options of a choice by name: ``lam=0.1,hidden=[4, 4]`` has two."""
    parts = re.split(r",(?=[\w.]+=)", value)
    pairs = [part.partition("=") for part in parts]
    return {name: text for name, _, text in pairs}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
