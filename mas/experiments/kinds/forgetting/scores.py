"""Differences of scores between strategies and between runs."""

from collections.abc import Sequence

import pandas as pd

from mas.experiments.record import CellRecord, finished
from mas.experiments.results import Results
from mas.experiments.scores import CEILINGS, labels_of, scores_of, scores_table
from mas.experiments.statistics import holm, mean_and_interval, paired_p

COMPARISON_COLUMNS = ["strategy", "against", "score", "difference", "ci_low", "ci_high", "n", "p", "p_holm"]
COMPARED_SCORES = ("ACC", "forgetting")
BASELINE = "naive"

ComparisonRow = tuple[str, str, str, float, float, float, int, float]


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
    common = [label for label in labels_of(first) if label in labels_of(second)]
    tables = []
    for score in COMPARED_SCORES:
        rows: list[ComparisonRow] = []
        for label in common:
            difference = _difference(scores_of(second, label), scores_of(first, label), score)
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


def _against(scores: pd.DataFrame, other: str, score: str) -> pd.DataFrame:
    """Return the differences of every label from ``other`` in one score; none if ``other`` has no scores."""
    labels = labels_of(scores)
    rows: list[ComparisonRow] = []
    if other in labels:
        base = scores_of(scores, other)
        for label in labels:
            if label != other:
                rows.append((label, other, score, *_difference(scores_of(scores, label), base, score)))
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
