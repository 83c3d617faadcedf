"""Scores of forgetting of every cell, and their means over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mas.experiments.record import CellRecord, finished
from mas.experiments.report.sections import Score
from mas.experiments.statistics import mean_and_interval
from mas.forgetting import forgetting_scores

SUMMARY_COLUMNS = ["strategy", "score", "mean", "ci_low", "ci_high", "n"]
CEILINGS = ("cumulative", "joint")  # in the order in which intransigence takes its reference from them

SummaryRow = tuple[str, str, float, float, float, int]


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
        if label in labels_of(scores):
            rows += _score_rows(scores, label)
        rows += _cost_rows(records, label)
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def acc_score(tables: Mapping[str, pd.DataFrame]) -> Score:
    """Return the ACC of a summary, in percent."""
    summary = tables["summary"]
    return Score.of("ACC, %", summary[summary["score"] == "ACC"], ["strategy", "mean", "ci_low", "ci_high"], 100)


def _score_rows(scores: pd.DataFrame, label: str) -> list[SummaryRow]:
    own = scores_of(scores, label)
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


def labels_of(scores: pd.DataFrame) -> list[str]:
    """Return the labels of a table of scores, in their order."""
    return list(dict.fromkeys(scores.index.get_level_values("label")))


def scores_of(scores: pd.DataFrame, label: str) -> pd.DataFrame:
    """Return the rows of a label, by seed."""
    return scores.xs(label, level="label")
