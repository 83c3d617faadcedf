"""Scores of every strategy and strength, compared with no protection."""

from collections.abc import Mapping, Sequence

import pandas as pd

from mas.experiments.kinds.consolidated_deficit.config import ConsolidatedDeficit
from mas.experiments.kinds.consolidated_deficit.plan import REFERENCE, Variant, variants
from mas.experiments.record import CellRecord
from mas.experiments.report.sections import Score
from mas.experiments.results import Results
from mas.experiments.statistics import holm, mean_and_interval, paired_p
from mas.experiments.tables import cells_table, final_accuracies, results_table
from mas.experiments.traces import diverged, layer_traces, probes_table, shift, trace_table

SCORES = {
    "accuracy": "accuracy on clear test data at the end",
    "impaired_accuracy": "accuracy on impaired test data at the end",
    "forgetting": "how far that fell since the end of the deficit",
    "intransigence": "how far accuracy is below that of a network trained on clear data alone, as many clear epochs",
    "trace_peak": "greatest Fisher trace in training, on the data trained on",
    "trace_final": "Fisher trace at the end",
    "share_shift": "Jensen–Shannon shift of the layers' shares of the trace, from the end of the deficit to the end",
}
SHARES = ("accuracy", "impaired_accuracy", "forgetting", "intransigence")  # scores from 0 to 1, shown in percent
SCORE_COLUMNS = [
    "strategy",
    "strength",
    "length",
    "score",
    "mean",
    "ci_low",
    "ci_high",
    "n",
    "diverged",
    "difference",
    "p",
    "p_holm",
]

Scores = dict[int, dict[str, float]]  # by seed, by score


def tables(config: ConsolidatedDeficit, results: Results) -> dict[str, pd.DataFrame]:
    """Return every table of a run."""
    records = results.records
    return {
        "results": results_table(records),
        "cells": cells_table(records),
        "probes": probes_table(records),
        "traces": trace_table(records),
        "scores": scores_table(config, records),
    }


def score(tables: Mapping[str, pd.DataFrame]) -> Score:
    """Return the accuracy of each strategy and strength at each length."""
    own = tables["scores"][tables["scores"]["score"] == "accuracy"]
    strengths = own["strength"].map(lambda strength: "" if pd.isna(strength) else f"-{strength:g}")
    labels = own["strategy"].astype(str) + strengths + "_" + own["length"].astype(str)
    return Score.of("accuracy, %", own.assign(label=labels), ["label", "mean", "ci_low", "ci_high"], 100)


def scores_table(config: ConsolidatedDeficit, records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return every score's mean over seeds, with its 95 % interval: columns `SCORE_COLUMNS`, scores of `SCORES`.

    ``difference`` is that from the run of the same length with the strength 0 or without protection,
    paired by seed, where there is one; ``p`` is that of its paired t-test, ``p_holm`` adjusted for all
    that are compared in one score. Seeds that ``diverged`` are in no mean.
    """
    found, lost_seeds = _scores_by_label(records), diverged(records)
    every = variants(config)
    rows = []
    for variant in every:
        own, unprotected = found.get(variant.label, {}), _unprotected(every, variant)
        base = found.get(unprotected.label, {}) if unprotected else {}
        for score in SCORES:
            values = _by_seed(own, score)
            others = {} if unprotected == variant else _by_seed(base, score)
            gains = [values[seed] - others[seed] for seed in values if seed in others]
            name = (variant.title, variant.strength, variant.length, score)
            mean = mean_and_interval(list(values.values()))
            difference = mean_and_interval(gains).mean
            rows.append((*name, *mean, lost_seeds[variant.label], difference, paired_p(gains)))
    table = pd.DataFrame(rows, columns=SCORE_COLUMNS[:-1])
    return table.assign(p_holm=table.groupby("score", sort=False)["p"].transform(holm).astype(float))


def _by_seed(scores: Scores, score: str) -> dict[int, float]:
    """Return one score by seed, where it was measured."""
    return {seed: own[score] for seed, own in scores.items() if score in own}


def _unprotected(every: Sequence[Variant], variant: Variant) -> Variant | None:
    """Return the first variant of the same length that protects nothing."""
    return next((v for v in every if v.length == variant.length and v.is_unprotected), None)


def _scores_by_label(records: Sequence[CellRecord]) -> dict[str, Scores]:
    reference = final_accuracies(records).get(REFERENCE, {})
    found: dict[str, Scores] = {}
    for record in records:
        if record.outcome.finished and record.label != REFERENCE:
            found.setdefault(record.label, {})[record.seed] = _scores(record, reference)
    return found


def _scores(record: CellRecord, reference: Mapping[int, float]) -> dict[str, float]:
    learned, final = record.outcome.matrix()
    scores = {
        "accuracy": final[1],
        "impaired_accuracy": final[0],
        "forgetting": learned[0] - final[0],
    }
    if record.seed in reference:
        scores["intransigence"] = reference[record.seed] - final[1]
    return scores | _trace_scores(record)


def _trace_scores(record: CellRecord) -> dict[str, float]:
    traces = layer_traces(record, "train")
    if not traces:
        return {}
    totals = {at: sum(layers.values()) for at, layers in traces.items()}
    trained = [total for (_, _, iteration), total in totals.items() if iteration]  # 0: not yet on these data
    return {"trace_peak": max(trained), "trace_final": trained[-1], "share_shift": shift(traces, (1, 0))}
