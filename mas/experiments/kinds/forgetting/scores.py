"""Scores of forgetting, their means over seeds, and the differences between strategies and between runs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mas.experiments.record import CellRecord, finished
from mas.experiments.results import Results
from mas.experiments.statistics import holm, mean_and_interval, paired_p
from mas.forgetting import forgetting_scores

SUMMARY_COLUMNS = ["strategy", "score", "mean", "ci_low", "ci_high", "n"]
COMPARISON_COLUMNS = ["strategy", "against", "score", "difference", "ci_low", "ci_high", "n", "p", "p_holm"]
COMPARED_SCORES = ("ACC", "forgetting")
BASELINE = "naive"
CEILINGS = ("cumulative", "joint")  # in the order in which intransigence takes its reference from them

SummaryRow = tuple[str, str, float, float, float, int]
ComparisonRow = tuple[str, str, str, float, float, float, int, float]


def scores_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return the scores of every finished cell: a row per (label, seed), a column per score.

    The reference of intransigence is, seed by seed, cumulative training (all data up to i) or joint
    training (all data); `reference_of` says which.
    """
    references = _references(records)
    rows = []
    for record in finished(records):
        outcome = record.outcome
        scores = forgetting_scores(outcome.matrix(), outcome.untrained, references.get(record.seed))
        rows.append({"label": record.label, "seed": record.seed, **scores})
    names = list(forgetting_scores([[1.0]]))
    table = pd.DataFrame(rows, columns=["label", "seed", *names])
    return table.set_index(["label", "seed"])


def summary_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return means over seeds with 95 % bootstrap intervals: columns `SUMMARY_COLUMNS`, in the cells' order.

    ``seconds`` is the time of a cell. ``diverged`` is the share of seeds that diverged; these enter no
    mean of a score.
    """
    scores = scores_table(records)
    rows: list[SummaryRow] = []
    for label in dict.fromkeys(record.label for record in records):
        if label in _labels(scores):
            rows += _score_rows(scores, label)
        rows += _cost_rows(records, label)
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def _score_rows(scores: pd.DataFrame, label: str) -> list[SummaryRow]:
    own = _scores_of(scores, label)
    return [(label, score, *mean_and_interval(values)) for score, values in own.items()]


def _cost_rows(records: Sequence[CellRecord], label: str) -> list[SummaryRow]:
    outcomes = [record.outcome for record in records if record.label == label]
    seconds = [outcome.seconds for outcome in outcomes]
    diverged = [not outcome.finished for outcome in outcomes]
    share = float(np.mean(diverged))
    return [
        (label, "seconds", *mean_and_interval(seconds)),
        (label, "diverged", share, np.nan, np.nan, len(diverged)),
    ]


def comparison_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Compare every strategy with naive, and with the best: columns `COMPARISON_COLUMNS`.

    A difference is the strategy's score minus the other's, paired by seed, with its 95 % bootstrap
    interval, the p-value of the paired t-test, and that value adjusted by Holm's method for the
    number of strategies compared. The best (`best_label`) is chosen on the same seeds, so its scores
    are slightly too good.
    """
    scores = scores_table(records)
    tables = []
    for other in dict.fromkeys([naive_label(records), best_label(records)]):
        for score in COMPARED_SCORES:
            table = _against(scores, str(other), score)
            if len(table):
                tables.append(table)
    return _stacked(tables)


def compare(a: Results, b: Results) -> pd.DataFrame:
    """Compare strategies of one name in two runs, b minus a, paired by seed: columns as of `comparison_table`.

    ``against`` is empty; Holm's method adjusts for the number of strategies.
    """
    first = scores_table(a.records)
    second = scores_table(b.records)
    common = [label for label in _labels(first) if label in _labels(second)]
    tables = []
    for score in COMPARED_SCORES:
        rows: list[ComparisonRow] = []
        for label in common:
            difference = _difference(_scores_of(second, label), _scores_of(first, label), score)
            rows.append((label, "", score, *difference))
        tables.append(_adjusted(rows))
    return _stacked(tables)


def naive_label(records: Sequence[CellRecord]) -> str | None:
    """Return the label of the first naive strategy, by whatever name it goes; None if there is none."""
    return next((r.label for r in records if r.strategy == BASELINE), None)


def best_label(records: Sequence[CellRecord]) -> str | None:
    """Return the label with the highest mean ACC; None if nothing finished.

    Ceilings (joint, cumulative) do not learn from a stream and are left out. So are strategies with
    fewer finished seeds than others.
    """
    streaming = [r for r in finished(records) if r.strategy not in CEILINGS]
    acc = scores_table(streaming)["ACC"].groupby("label", sort=False).agg(["mean", "count"])
    return best_of(acc["mean"], acc["count"])


def best_of(means: pd.Series, counts: pd.Series) -> str | None:
    """Return the label with the highest mean of those with the most seeds; None if there is none."""
    complete = means[counts == counts.max()]
    return str(complete.idxmax()) if len(complete) else None


def reference_of(strategies: Sequence[str]) -> str | None:
    """Return the ceiling that intransigence is measured against: the one with more seeds, or else cumulative.

    Args:
        strategies: the name of the strategy of each finished cell.
    """
    most = max(CEILINGS, key=strategies.count)  # the first of equals
    return most if most in strategies else None


def _references(records: Sequence[CellRecord]) -> dict[int, np.ndarray]:
    """Return the accuracies a*_i by seed."""
    done = finished(records)
    name = reference_of([record.strategy for record in done])
    found: dict[int, np.ndarray] = {}
    for record in done:
        if record.strategy == name and record.seed not in found:
            matrix = record.outcome.matrix()
            found[record.seed] = matrix[-1] if name == "joint" else matrix.diagonal()
    return found


def _labels(scores: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(scores.index.get_level_values("label")))


def _scores_of(scores: pd.DataFrame, label: str) -> pd.DataFrame:
    """Return the rows of a label, by seed."""
    return scores.xs(label, level="label")


def _against(scores: pd.DataFrame, other: str, score: str) -> pd.DataFrame:
    """Return the differences of every label from ``other`` in one score; none if ``other`` has no scores."""
    labels = _labels(scores)
    rows: list[ComparisonRow] = []
    if other in labels:
        base = _scores_of(scores, other)
        for label in labels:
            if label != other:
                rows.append((label, other, score, *_difference(_scores_of(scores, label), base, score)))
    return _adjusted(rows)


def _difference(own: pd.DataFrame, other: pd.DataFrame, score: str) -> tuple[float, float, float, int, float]:
    """Return mean, interval, number of pairs and p of own − other."""
    pairs = own.index.intersection(other.index)
    gain = own.loc[pairs, score] - other.loc[pairs, score]
    return (*mean_and_interval(gain), paired_p(gain))


def _adjusted(rows: list[ComparisonRow]) -> pd.DataFrame:
    """Return rows as a table with the p-values that Holm's method adjusts."""
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS[:-1])
    return table.assign(p_holm=holm(table["p"]))


def _stacked(tables: list[pd.DataFrame]) -> pd.DataFrame:
    if not tables:
        return pd.DataFrame(columns=COMPARISON_COLUMNS)
    return pd.concat(tables, ignore_index=True)
