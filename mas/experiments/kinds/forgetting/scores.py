"""Scores of forgetting, their means over seeds, and the differences between strategies and between runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mas.experiments.record import CellRecord, finished
from mas.experiments.results import Results
from mas.experiments.statistics import holm, mean_and_interval, paired_p
from mas.forgetting import forgetting_scores

SUMMARY_COLUMNS = ["strategy", "score", "mean", "ci_low", "ci_high", "n"]
COMPARISON_COLUMNS = ["strategy", "against", "score", "difference", "ci_low", "ci_high", "n", "p", "p_holm"]
BASELINE = "naive"
CEILINGS = ("cumulative", "joint")  # in the order in which intransigence takes its reference from them


def scores_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return the scores of every finished cell: a row per (label, seed), a column per score.

    The reference of intransigence is, seed by seed, cumulative training (all data up to i) or joint
    training (all data); `reference_of` says which.
    """
    reference = _references(records)
    rows = [
        {
            "label": r.label,
            "seed": r.seed,
            **forgetting_scores(r.outcome.matrix(), r.outcome.untrained, reference.get(r.seed)),
        }
        for r in finished(records)
    ]
    table = pd.DataFrame(rows, columns=["label", "seed", *forgetting_scores([[1.0]])])
    return table.set_index(["label", "seed"])


def summary_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return means over seeds with 95 % bootstrap intervals: columns `SUMMARY_COLUMNS`, in the cells' order.

    ``seconds`` is what a cell took. ``diverged`` is the share of seeds that did: those enter no mean
    of a score.
    """
    scores = scores_table(records)
    rows: list[tuple[Any, ...]] = []
    for label in dict.fromkeys(r.label for r in records):
        for score, values in _of(scores, label).items() if label in _labels(scores) else ():
            rows.append((label, score, *mean_and_interval(values)))
        own = [r for r in records if r.label == label]
        rows.append((label, "seconds", *mean_and_interval([r.outcome.seconds for r in own])))
        diverged = [not r.outcome.finished for r in own]
        rows.append((label, "diverged", float(np.mean(diverged)), np.nan, np.nan, len(diverged)))
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def comparison_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Compare every strategy with naive, and with the best: columns `COMPARISON_COLUMNS`.

    A difference is the strategy's score minus the other's, paired by seed, with its 95 % bootstrap
    interval, the p-value of the paired t-test, and that value adjusted by Holm's method for the
    number of strategies compared. The best (`best_label`) was found by the same seeds, so that it is
    flattered a little.
    """
    scores = scores_table(records)
    others = dict.fromkeys([naive_label(records), best_label(records)])
    tables = [_against(scores, str(other), score) for other in others for score in ("ACC", "forgetting")]
    return _stacked([table for table in tables if len(table)])


def compare(a: Results, b: Results) -> pd.DataFrame:
    """Compare strategies of one name in two runs, b minus a, paired by seed: columns as of `comparison_table`.

    ``against`` is empty; Holm's method adjusts for the number of strategies.
    """
    tables = []
    first, second = scores_table(a.records), scores_table(b.records)
    common = [label for label in _labels(first) if label in _labels(second)]
    for score in ("ACC", "forgetting"):
        rows = [(label, "", score, *_difference(_of(second, label), _of(first, label), score)) for label in common]
        tables.append(_adjusted(rows))
    return _stacked(tables)


def naive_label(records: Sequence[CellRecord]) -> str | None:
    """Return the label of the first naive strategy, by whatever name it goes; None if there is none."""
    return next((r.label for r in records if r.strategy == BASELINE), None)


def best_label(records: Sequence[CellRecord]) -> str | None:
    """Return the strategy with the highest mean ACC; None if nothing finished.

    Ceilings (joint, cumulative) do not learn from a stream and cannot be it; nor can a strategy that
    lacks seeds that others have finished, because it diverged or is not done.
    """
    streaming = [r for r in finished(records) if r.strategy not in CEILINGS]
    acc = scores_table(streaming)["ACC"].groupby("label", sort=False).agg(["mean", "count"])
    return best_of(acc["mean"], acc["count"])


def best_of(means: pd.Series, counts: pd.Series) -> str | None:
    """Return the label with the highest mean of those with the most seeds; None if there is none."""
    complete = means[counts == counts.max()]
    return str(complete.idxmax()) if len(complete) else None


def reference_of(strategies: Sequence[str]) -> str | None:
    """Return the ceiling that intransigence is measured against: that with the most seeds, of equals cumulative.

    Args:
        strategies: the name of the strategy of each finished cell.
    """
    most = max(CEILINGS, key=strategies.count)  # of equals the first
    return most if most in strategies else None


def _references(records: Sequence[CellRecord]) -> dict[int, np.ndarray]:
    """Return the accuracies a*_i by seed."""
    done = finished(records)
    name = reference_of([r.strategy for r in done])
    ceilings = [r for r in done if r.strategy == name][::-1]  # the first stays
    return {r.seed: r.outcome.matrix()[-1] if name == "joint" else r.outcome.matrix().diagonal() for r in ceilings}


def _labels(scores: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(scores.index.get_level_values("label")))


def _of(scores: pd.DataFrame, label: str) -> pd.DataFrame:
    return scores.xs(label, level="label")


def _against(scores: pd.DataFrame, other: str, score: str) -> pd.DataFrame:
    if other not in _labels(scores):
        return _adjusted([])
    rows = [
        (label, other, score, *_difference(_of(scores, label), _of(scores, other), score))
        for label in _labels(scores)
        if label != other
    ]
    return _adjusted(rows)


def _difference(own: pd.DataFrame, other: pd.DataFrame, score: str) -> tuple[Any, ...]:
    """Return mean, interval, number of pairs and p of own − other."""
    pairs = own.index.intersection(other.index)
    gain = own.loc[pairs, score] - other.loc[pairs, score]
    return (*mean_and_interval(gain), paired_p(gain))


def _adjusted(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS[:-1])
    return table.assign(p_holm=holm(table["p"]))


def _stacked(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COMPARISON_COLUMNS)
