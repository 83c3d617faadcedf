"""From cells to tables: every accuracy as a row, every score with its interval over seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mas.forgetting import forgetting_scores

RESULT_COLUMNS = ["label", "strategy", "seed", "trained_on", "tested_on", "accuracy"]
SUMMARY_COLUMNS = ["strategy", "score", "mean", "ci_low", "ci_high", "n"]
BASELINE = "naive"

Record = dict[str, Any]


def results_table(records: Sequence[Record]) -> pd.DataFrame:
    """Give one row per accuracy: columns `RESULT_COLUMNS`.

    Experiences count from 0; ``trained_on`` is -1 for the untrained network. Cells that diverged
    have no rows.
    """
    rows = [
        (r["label"], r["settings"]["strategy"]["name"], r["seed"], trained_on, tested_on, accuracy)
        for r in _finished(records)
        for trained_on, row in enumerate([r["untrained"], *r["accuracy"]], start=-1)
        for tested_on, accuracy in enumerate(row)
        if accuracy is not None
    ]
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def scores_table(records: Sequence[Record]) -> pd.DataFrame:
    """Give the scores of every finished cell: a row per (label, seed), a column per score."""
    rows = [
        {"label": r["label"], "seed": r["seed"], **forgetting_scores(as_matrix(r), r["untrained"])}
        for r in _finished(records)
    ]
    table = pd.DataFrame(rows, columns=["label", "seed", *forgetting_scores([[1.0]])])
    return table.set_index(["label", "seed"])


def summary_table(records: Sequence[Record]) -> pd.DataFrame:
    """Give means over seeds with 95 % intervals: columns `SUMMARY_COLUMNS`, in the cells' order.

    Intervals are Student's t over seeds; with one seed there is none (NaN). Where a strategy is
    called "naive", two more scores compare with it, paired by seed: ``ACC_over_naive`` and
    ``forgetting_below_naive``, both better the larger. ``diverged`` is the share of seeds that
    did: those enter no other mean.
    """
    scores = scores_table(records)
    rows = []
    for label in dict.fromkeys(r["label"] for r in records):
        own = (
            scores.loc[label] if label in scores.index.get_level_values("label") else scores.iloc[:0].droplevel("label")
        )
        for score, values in own.items() if len(own) else ():
            rows.append((label, score, *mean_and_interval(values)))
        rows.extend((label, score, *mean_and_interval(values)) for score, values in _paired(scores, label, own))
        diverged = [r["status"] == "diverged" for r in records if r["label"] == label]
        rows.append((label, "diverged", float(np.mean(diverged)), np.nan, np.nan, len(diverged)))
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def mean_and_interval(values: Any) -> tuple[float, float, float, int]:
    """Give mean, the ends of the 95 % interval (Student's t), and the number of values.

    >>> mean_and_interval([1.0])
    (1.0, nan, nan, 1)
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return (float(x.mean()) if len(x) else np.nan, np.nan, np.nan, len(x))
    half = float(stats.t.ppf(0.975, len(x) - 1) * stats.sem(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x)


def as_matrix(record: Record) -> np.ndarray:
    """Give R of one cell, shape (T, T), NaN where not measured."""
    return np.array(record["accuracy"], dtype=np.float64)


def _finished(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r["status"] == "finished"]


def _paired(scores: pd.DataFrame, label: str, own: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    if label == BASELINE or not len(own) or BASELINE not in scores.index.get_level_values("label"):
        return []
    base = scores.loc[BASELINE]
    both = own.index.intersection(base.index)
    gain = own.loc[both] - base.loc[both]
    return [("ACC_over_naive", gain["ACC"]), ("forgetting_below_naive", -gain["forgetting"])]
