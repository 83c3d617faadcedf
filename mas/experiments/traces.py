"""What probes saw: every value, means over seeds, and the shares of the layers."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mas.experiments.config.schema import ProbeOptions
from mas.experiments.record import CellRecord
from mas.experiments.statistics import mean_and_interval
from mas.information import share_shift

PROBE_COLUMNS = ["label", "seed", "data", "experience", "epoch", "iteration", "probe", "part", "value"]
TRACE_COLUMNS = ["label", "probe", "data", "part", "experience", "epoch", "iteration", "mean", "ci_low", "ci_high", "n"]
SHIFT_COLUMNS = ["label", "data", "shift", "ci_low", "ci_high", "n"]
TOTAL = "all layers"  # the part that sums up those of a layer each
FISHER = "fisher_trace"
PER_LAYER = (FISHER, "information")  # probes whose parts are layers, and add up

Moment = tuple[int, int, int]  # experience, epoch, iteration
LayerTraces = dict[Moment, dict[str, float]]  # trace by layer


def diverged(records: Sequence[CellRecord]) -> Counter[str]:
    """Return the number of seeds that diverged, by label."""
    return Counter(r.label for r in records if not r.outcome.finished)


def probes_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return every value as a row: columns `PROBE_COLUMNS`; ``probe`` is the probe's title in the config."""
    return _every_value(records)[PROBE_COLUMNS]


def trace_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return each value's mean over seeds, with its 95 % interval: columns `TRACE_COLUMNS`.

    What is measured layer by layer has a further part, `TOTAL`, their sum.
    """
    table = _every_value([record for record in records if record.outcome.finished])
    keys = ["label", "probe", "data", "experience", "epoch", "iteration"]
    layered = table[table["part"].ne("") & table["name"].isin(PER_LAYER)]
    totals = layered.groupby([*keys, "seed"], sort=False)["value"].sum().reset_index().assign(part=TOTAL)
    every = pd.concat([table, totals], ignore_index=True)
    rows = [
        (label, probe, data, part, experience, epoch, iteration, *mean_and_interval(own["value"]))
        for (label, probe, data, experience, epoch, iteration, part), own in every.groupby([*keys, "part"], sort=False)
    ]
    return pd.DataFrame(rows, columns=TRACE_COLUMNS)


def fisher_title(probes: Sequence[ProbeOptions]) -> str | None:
    """Return the title of the first probe of Fisher traces; None if there is none."""
    return next((probe.title() for probe in probes if probe.name == FISHER), None)


def fisher_traces(traces: pd.DataFrame, probes: Sequence[ProbeOptions]) -> pd.DataFrame:
    """Return the rows of `trace_table` that are Fisher traces; of several such probes, the first's."""
    return traces[traces["probe"] == fisher_title(probes)]


def layer_traces(record: CellRecord, data: str) -> LayerTraces:
    """Return the Fisher traces of a cell by layer, in the order of time; of several such probes, the first's."""
    title = fisher_title(record.cell.settings.probes)
    found: LayerTraces = {}
    for row in record.outcome.probes:
        if row.label == title and row.data == data:
            found.setdefault((row.experience, row.epoch, row.iteration), {})[row.part] = row.value
    return found


def shift_table(records: Sequence[CellRecord], since: tuple[int, int], data: str = "train") -> pd.DataFrame:
    """Return the Jensen–Shannon shift of the layers' shares of the Fisher trace to the end: columns `SHIFT_COLUMNS`.

    Args:
        records: of cells with the probe ``fisher_trace``; others are left out.
        since: (experience, epoch) to begin with; the first look from then on counts.
        data: what it was measured on.
    """
    found: dict[str, list[float]] = {}
    for record in records:
        traces = layer_traces(record, data)
        if record.outcome.finished and traces:
            found.setdefault(record.label, []).append(shift(traces, since))
    rows = [(label, data, *mean_and_interval(shifts)) for label, shifts in found.items()]
    return pd.DataFrame(rows, columns=SHIFT_COLUMNS)


def shift(traces: LayerTraces, since: tuple[int, int]) -> float:
    """Return how far the layers' shares move to the end, in nats; NaN where a trace is 0, or there is one alone."""
    later = [layers for at, layers in traces.items() if at[:2] >= since]
    if len(later) < 2:
        return np.nan
    try:
        return share_shift(later[0], later[-1])
    except ValueError:
        return np.nan


def as_drawn(traces: pd.DataFrame) -> pd.DataFrame:
    """Leave out the layers of what has a sum."""
    summed = set(traces[traces["part"] == TOTAL]["probe"])
    return traces[(traces["part"] == TOTAL) | ~traces["probe"].isin(summed)]


def _every_value(records: Sequence[CellRecord]) -> pd.DataFrame:
    rows = [
        (record.label, record.seed, r.data, r.experience, r.epoch, r.iteration, r.label, r.part, r.value, r.probe)
        for record in records
        for r in record.outcome.probes
    ]
    return pd.DataFrame(rows, columns=[*PROBE_COLUMNS, "name"])
