"""The curves that the runs' final accuracies make, paired by seed."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mas.experiments.kinds.critical_period.config import AT_END, CriticalPeriod
from mas.experiments.kinds.critical_period.plan import clear_run, control_run, points, traced_runs
from mas.experiments.record import CellRecord
from mas.experiments.report.sections import Score
from mas.experiments.results import Results
from mas.experiments.statistics import holm, mean_and_interval, paired_p
from mas.experiments.tables import cells_table, final_accuracies, results_table
from mas.experiments.traces import diverged, probes_table, shift_table, trace_table

CURVE_COLUMNS = [
    "curve",
    "deficit",
    "epoch",
    "run",
    "reference",
    "accuracy",
    "ci_low",
    "ci_high",
    "n",
    "diverged",
    "train_accuracy",
    "loss",
    "loss_ci_low",
    "loss_ci_high",
    "loss_n",
    "p",
    "p_holm",
]
CONTROL_COLUMNS = [
    "deficit",
    "epoch",
    "loss",
    "control_loss",
    "explained",
    "left",
    "left_ci_low",
    "left_ci_high",
    "n",
    "p",
    "p_holm",
]


def tables(config: CriticalPeriod, results: Results) -> dict[str, pd.DataFrame]:
    """Return every table of a run."""
    records = results.records
    made = {
        "results": results_table(records),
        "cells": cells_table(records),
        "probes": probes_table(records),
        "traces": trace_table(records),
        "curves": curves(config, records),
    }
    if config.needs_control:
        made["control"] = control_comparison(config, records)
    if config.trace:
        made["shares"] = share_shifts(config, records)
    return made


def score(tables: Mapping[str, pd.DataFrame]) -> Score:
    """Return the accuracy of each run that a curve has."""
    curves = tables["curves"].drop_duplicates("run")
    return Score.of("accuracy, %", curves, ["run", "accuracy", "ci_low", "ci_high"], 100)


def curves(config: CriticalPeriod, records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return every point of every curve: columns `CURVE_COLUMNS`.

    ``accuracy`` is on clear test data at the end, ``loss`` how far it is below that of the reference,
    paired by seed, with 95 % intervals, of ``loss_n`` seeds; ``p`` of the paired t-test, ``p_holm``
    adjusted for the points of the curve. ``train_accuracy`` is on clear training data. Seeds that
    ``diverged`` are in no mean.
    """
    lost_seeds = diverged(records)
    test = final_accuracies(records)
    train = _train_accuracies(records)
    rows = []
    for point in points(config):
        run, reference = point.run.label, point.reference.label
        own = test.get(run, {})
        base = {} if point.run == point.reference else test.get(reference, {})
        losses = _differences(base, own)
        rows.append(
            (
                point.curve,
                point.deficit,
                point.epoch,
                run,
                reference,
                *mean_and_interval(list(own.values())),
                lost_seeds[run],
                mean_and_interval(list(train.get(run, {}).values())).mean,
                *mean_and_interval(losses),
                paired_p(losses),
            )
        )
    table = pd.DataFrame(rows, columns=CURVE_COLUMNS[:-1])
    adjusted = table.groupby(["curve", "deficit"], sort=False)["p"].transform(holm)
    return table.assign(p_holm=adjusted.astype(float))


def control_comparison(config: CriticalPeriod, records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return how much of each loss the lr-matched control loses too: columns `CONTROL_COLUMNS`.

    ``explained`` is the control's mean loss as a share of the mean loss, NaN where the interval of that
    reaches 0. ``left`` is the rest of the loss, paired by seed, with its 95 % interval and the
    p-value of the paired t-test, ``p_holm`` adjusted for the deficit's points.
    """
    accuracies = final_accuracies(records)
    clear = accuracies.get(clear_run(config).label, {})
    rows = []
    for point in points(config):
        if point.curve == "removal" and point.epoch:
            own = accuracies.get(point.run.label, {})
            control = accuracies.get(control_run(config, point.epoch).label, {})
            rows.append((point.deficit, point.epoch, *_compared(clear, own, control)))
    table = pd.DataFrame(rows, columns=CONTROL_COLUMNS[:-1])
    return table.assign(p_holm=table.groupby("deficit", sort=False)["p"].transform(holm).astype(float))


def share_shifts(config: CriticalPeriod, records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return how far the layers' shares of the Fisher trace on clear data move after the end of the deficit."""
    if config.trace is None:
        return pd.DataFrame()
    labels = [run.label for run in traced_runs(config)]
    return shift_table([r for r in records if r.label in labels], since=(0, config.trace.end))


def _compared(clear: dict[int, float], own: dict[int, float], control: dict[int, float]) -> tuple[float, ...]:
    """Return a row of `control_comparison` from accuracies by seed."""
    seeds = [seed for seed in own if seed in control and seed in clear]
    losses = [clear[seed] - own[seed] for seed in seeds]
    control_losses = [clear[seed] - control[seed] for seed in seeds]
    left = [control[seed] - own[seed] for seed in seeds]
    loss = float(np.mean(losses)) if seeds else np.nan
    control_loss = float(np.mean(control_losses)) if seeds else np.nan
    certain = mean_and_interval(losses).ci_low > 0
    explained = control_loss / loss if certain else np.nan
    return (loss, control_loss, explained, *mean_and_interval(left), paired_p(left))


def _differences(of: dict[int, float], minus: dict[int, float]) -> list[float]:
    return [of[seed] - minus[seed] for seed in minus if seed in of]


def _train_accuracies(records: Sequence[CellRecord]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for record in records:
        values = [row.value for row in record.outcome.probes if row.label == AT_END.title()]
        if record.outcome.finished and values:
            found.setdefault(record.label, {})[record.seed] = values[-1]
    return found
