"""Tables of what probes measured: every value, means over seeds, and shifts of the layers' shares."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mas.experiments.config.schema import ProbeOptions
from mas.experiments.record import CellRecord, finished
from mas.experiments.statistics import mean_and_interval
from mas.information import share_shift

PROBE_COLUMNS = ["label", "seed", "data", "experience", "epoch", "iteration", "probe", "part", "value"]
TRACE_COLUMNS = ["label", "probe", "data", "part", "experience", "epoch", "iteration", "mean", "ci_low", "ci_high", "n"]
SHIFT_COLUMNS = ["label", "data", "shift", "ci_low", "ci_high", "n"]
TOTAL = "all layers"  # the part that is the sum over layers
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

    Probes that measure layer by layer have a further part, `TOTAL`, the sum over layers.
    """
    table = _every_value(finished(records))
    every = pd.concat([table, _totals(table)], ignore_index=True)
    rows = []
    for key, own in every.groupby([*_MOMENT, "part"], sort=False):
        label, probe, data, experience, epoch, iteration, part = key
        mean = mean_and_interval(own["value"])
        rows.append((label, probe, data, part, experience, epoch, iteration, *mean))
    return pd.DataFrame(rows, columns=TRACE_COLUMNS)


_MOMENT = ["label", "probe", "data", "experience", "epoch", "iteration"]


def _totals(table: pd.DataFrame) -> pd.DataFrame:
    """Return the sums over layers, seed by seed."""
    layered = table[table["part"].ne("") & table["name"].isin(PER_LAYER)]
    sums = layered.groupby([*_MOMENT, "seed"], sort=False)["value"].sum()
    return sums.reset_index().assign(part=TOTAL)


def fisher_title(probes: Sequence[ProbeOptions]) -> str | None:
    """Return the title of the first probe of Fisher traces; None if there is none."""
    titles = [probe.title() for probe in probes if probe.name == FISHER]
    return titles[0] if titles else None


def fisher_traces(traces: pd.DataFrame, probes: Sequence[ProbeOptions]) -> pd.DataFrame:
    """Return the rows of `trace_table` that are Fisher traces; of several such probes, the first's."""
    return traces[traces["probe"] == fisher_title(probes)]


def layer_traces(record: CellRecord, data: str) -> LayerTraces:
    """Return the Fisher traces of a cell by layer, in the order of time; of several such probes, the first's."""
    title = fisher_title(record.cell.training.probes)
    found: LayerTraces = {}
    for row in record.outcome.probes:
        if row.label == title and row.data == data:
            moment = (row.experience, row.epoch, row.iteration)
            layers = found.setdefault(moment, {})
            layers[row.part] = row.value
    return found


def shift_table(records: Sequence[CellRecord], since: tuple[int, int], data: str = "train") -> pd.DataFrame:
    """Return the Jensen–Shannon shift of the layers' shares of the Fisher trace to the end: columns `SHIFT_COLUMNS`.

    Args:
        records: of cells with the probe ``fisher_trace``; others are left out.
        since: (experience, epoch) of the beginning; the first measurement from then on counts.
        data: what it was measured on.
    """
    found: dict[str, list[float]] = {}
    for record in finished(records):
        traces = layer_traces(record, data)
        if traces:
            shifts = found.setdefault(record.label, [])
            shifts.append(shift(traces, since))
    rows = [(label, data, *mean_and_interval(shifts)) for label, shifts in found.items()]
    return pd.DataFrame(rows, columns=SHIFT_COLUMNS)


def shift(traces: LayerTraces, since: tuple[int, int]) -> float:
    """Return the shift of the layers' shares to the end, in nats; NaN for a trace of 0, or fewer than two traces."""
    later = [layers for at, layers in traces.items() if at[:2] >= since]
    if len(later) < 2:
        return np.nan
    try:
        return share_shift(later[0], later[-1])
    except ValueError:
        return np.nan


def as_drawn(traces: pd.DataFrame) -> pd.DataFrame:
    """Return a table of traces without the single layers of probes that have a sum over layers."""
    is_total = traces["part"] == TOTAL
    has_total = traces["probe"].isin(set(traces["probe"][is_total]))
    return traces[is_total | ~has_total]


def _every_value(records: Sequence[CellRecord]) -> pd.DataFrame:
    rows = []
    for record in records:
        for row in record.outcome.probes:
            moment = (row.experience, row.epoch, row.iteration)
            rows.append((record.label, record.seed, row.data, *moment, row.label, row.part, row.value, row.probe))
    return pd.DataFrame(rows, columns=[*PROBE_COLUMNS, "name"])
