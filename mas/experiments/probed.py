"""What probes saw: the data they look at while a cell trains, and the tables that come of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mas.benchmarks import DeficitPlugin, as_dataset, impaired, make_deficit
from mas.benchmarks.images import Images
from mas.experiments.seeds import stream_seed
from mas.experiments.statistics import mean_and_interval
from mas.information import share_shift
from mas.strategies import PROBES, ProbePlugin, Schedule
from mas.strategies.samples import test_data, train_data

Record = dict[str, Any]
Traces = dict[tuple[int, int, int], dict[str, float]]  # (experience, epoch, iteration) -> layer -> trace
TRACE_COLUMNS = ["label", "probe", "data", "part", "experience", "epoch", "iteration", "mean", "ci_low", "ci_high", "n"]
SHIFT_COLUMNS = ["label", "data", "shift", "ci_low", "ci_high", "n"]
TOTAL = "all layers"  # the part that sums up those of a layer each
FISHER = "fisher_trace"  # with it begin the labels of all such probes
PER_LAYER = (FISHER, "information")  # whose parts are layers, and add up
_IMPAIRED = ("impaired_train", "impaired_test")


class Seen(NamedTuple):
    """One value that one probe gave: `mas.strategies.probes.Row`, with the data it looked at."""

    data: str
    experience: int
    epoch: int
    iteration: int
    probe: str
    part: str
    value: float


def clear_views(probes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the impaired data, of a run that has no deficit: then the current data are the training data."""
    kept = []
    for probe in probes:
        views = ["train" if view == "current" else view for view in probe["data"] if view not in _IMPAIRED]
        if views:
            kept.append(dict(probe) | {"data": list(dict.fromkeys(views))})
    return kept


def deficit_plugin(options: Mapping[str, Any] | None, benchmark: Any, seed: int) -> DeficitPlugin | None:
    """Make the plugin of a scheduled deficit, if there is one; its draws have a random stream of their own."""
    if not options:
        return None
    own = {key: value for key, value in options.items() if key not in ("start", "end", "label")}
    classes = 1 + max(max(e.classes_in_this_experience) for e in benchmark.train_stream)
    deficit = make_deficit(own, classes, stream_seed(seed, "deficit"))
    return DeficitPlugin(deficit, options["start"], options["end"], stream_seed(seed, "deficit draws"))


def probe_plugins(
    probes: Sequence[Mapping[str, Any]], deficit: DeficitPlugin | None, seed: int
) -> list[tuple[str, ProbePlugin]]:
    """Make a plugin for each probe and each data it looks at; give it with the name of that data.

    Args:
        probes: plain options, as in a config.
        deficit: of the run, if it has one.
        seed: of the cell: random parts of impaired data are drawn from it.
    """
    views = _Views(deficit, seed)
    return [
        (view, ProbePlugin({title: probe}, getattr(views, view), schedule, samples))
        for title, probe, schedule, samples, data in map(_parsed, probes)
        for view in data
    ]


def rows_of(record: Record) -> list[Seen]:
    """Give what the probes of a cell saw."""
    return [Seen(*row) for row in record["probes"]]


def diverged(records: Sequence[Record]) -> Counter[str]:
    """Give the number of seeds that diverged, by label."""
    return Counter(r["label"] for r in records if r["status"] == "diverged")


def probes_table(records: Sequence[Record]) -> pd.DataFrame:
    """Give every value as a row: label, seed, and the fields of `Seen`."""
    rows = [(r["label"], r["seed"], *row) for r in records for row in rows_of(r)]
    return pd.DataFrame(rows, columns=["label", "seed", *Seen._fields])


def trace_table(records: Sequence[Record]) -> pd.DataFrame:
    """Give each value's mean over seeds, with its 95 % interval: columns `TRACE_COLUMNS`.

    What is measured layer by layer has a further part, `TOTAL`, their sum.
    """
    table = probes_table([r for r in records if r["status"] == "finished"])
    keys = ["label", "probe", "data", "experience", "epoch", "iteration"]
    layered = table[table["part"].ne("") & _is_layered(table)]
    totals = layered.groupby([*keys, "seed"], sort=False)["value"].sum().reset_index().assign(part=TOTAL)
    every = pd.concat([table, totals], ignore_index=True)
    rows = [
        (label, probe, data, part, experience, epoch, iteration, *mean_and_interval(own["value"]))
        for (label, probe, data, experience, epoch, iteration, part), own in every.groupby([*keys, "part"], sort=False)
    ]
    return pd.DataFrame(rows, columns=TRACE_COLUMNS)


def fisher_traces(traces: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of `trace_table` that are Fisher traces; of several such probes, the first's."""
    found = traces[traces["probe"].str.startswith(FISHER)]
    return found[found["probe"] == found["probe"].iloc[0]] if len(found) else found


def layer_traces(record: Record, data: str) -> Traces:
    """Give the Fisher traces of a cell, layer by layer, in the order of time; of several such probes, the first's."""
    rows = [row for row in rows_of(record) if row.probe.startswith(FISHER) and row.data == data]
    found: Traces = {}
    for row in rows:
        if row.probe == rows[0].probe:
            found.setdefault((row.experience, row.epoch, row.iteration), {})[row.part] = row.value
    return found


def shift_table(records: Sequence[Record], since: tuple[int, int], data: str = "train") -> pd.DataFrame:
    """Give the Jensen–Shannon shift of the layers' shares of the Fisher trace to the end: columns `SHIFT_COLUMNS`.

    Args:
        records: of cells with the probe ``fisher_trace``; others are left out.
        since: (experience, epoch) to begin with; the first look from then on counts.
        data: what it was measured on.
    """
    found: dict[str, list[float]] = {}
    for record in records:
        traces = layer_traces(record, data)
        if record["status"] == "finished" and traces:
            found.setdefault(record["label"], []).append(shift(traces, since))
    return pd.DataFrame([(k, data, *mean_and_interval(v)) for k, v in found.items()], columns=SHIFT_COLUMNS)


def shift(traces: Traces, since: tuple[int, int]) -> float:
    """Give how far the layers' shares move to the end; NaN where a trace is 0 or not finite, or there is one alone."""
    later = [layers for at, layers in traces.items() if at[:2] >= since]
    if len(later) < 2:
        return np.nan
    try:
        return share_shift(later[0], later[-1])
    except ValueError:
        return np.nan


class _Views:
    """The data a probe may look at, as functions of the experience that is trained. Impaired ones are made once."""

    def __init__(self, deficit: DeficitPlugin | None, seed: int):
        self.deficit, self.seed, self.made = deficit, seed, dict[tuple[int, str], Any]()

    def train(self, experience: Any) -> Any:
        return train_data(experience)

    def test(self, experience: Any) -> Any:
        return test_data(experience)

    def current(self, experience: Any) -> Any:
        lasts = self.deficit is not None and self.deficit.active
        return self.impaired_train(experience) if lasts else self.train(experience)

    def impaired_train(self, experience: Any) -> Any:
        return self._impaired("train", experience)

    def impaired_test(self, experience: Any) -> Any:
        return self._impaired("test", experience)

    def _impaired(self, name: str, experience: Any) -> Any:
        key = (experience.current_experience, name)
        if key not in self.made:
            clear = getattr(self, name)(experience)
            x, y, task = clear.eval().batch(range(len(clear)))
            seen = impaired(Images(x, y), self._function(), stream_seed(self.seed, "probe", *key))
            self.made[key] = as_dataset(seen, int(task[0]))
        return self.made[key]

    def _function(self) -> Any:
        if self.deficit is None:
            raise ValueError("impaired data need a deficit; this run has none")
        return self.deficit.deficit


def _parsed(options: Mapping[str, Any]) -> tuple[str, Any, Schedule, int | None, list[str]]:
    own = dict(options)
    name, title = own.pop("name"), own.pop("label", None)
    every, samples, data = own.pop("every"), own.pop("max_samples", None), own.pop("data")
    schedule = Schedule(None if every == "end" else every, own.pop("unit"), own.pop("spacing"))
    return title or name, partial(PROBES[name], **own), schedule, samples, data


def _is_layered(table: pd.DataFrame) -> Any:
    """Say which rows are of a probe whose parts add up; a probe with a label of its own begins with its name."""
    return table["probe"].str.startswith(PER_LAYER)
