"""Critical periods: which networks are trained, and the curves that their accuracies make.

Every network is a run of its own: so many epochs, with a deficit in some of them. The curves are
drawn from the runs' final accuracies, paired by seed.

Source: Achille, Rovere and Soatto 2019, Critical Learning Periods in Deep Networks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mas.experiments.config import CriticalPeriod, Experiment, resolved
from mas.experiments.probed import clear_views, diverged, rows_of, shift_table
from mas.experiments.statistics import holm, mean_and_interval, paired_p
from mas.experiments.training import is_constant

Record = dict[str, Any]
CLEAR, CONTROL = "clear", "control"  # with these begin the labels of runs without deficit, and of no others
CURVE_COLUMNS = [
    *("curve", "deficit", "epoch", "run", "reference", "accuracy", "ci_low", "ci_high", "n", "diverged"),
    *("train_accuracy", "loss", "loss_ci_low", "loss_ci_high", "loss_n", "p", "p_holm"),
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
_AT_END = {
    "name": "accuracy",
    "label": "final_accuracy",
    "data": ["train"],
    "every": "end",
    "unit": "epochs",
    "spacing": "even",
}


@dataclass(frozen=True)
class Run:
    """One network's training."""

    epochs: int
    deficit: str = ""  # its title
    start: int = 0
    end: int = 0
    first_epoch: int = 0  # where in the learning rate's schedule it begins: the lr-matched control

    @property
    def label(self) -> str:
        """A name by which results are told apart."""
        if self.deficit:
            return f"{self.deficit}_{self.start}-{self.end}_of_{self.epochs}"
        return f"{CONTROL}_{self.first_epoch}_of_{self.epochs}" if self.first_epoch else f"{CLEAR}_{self.epochs}"


@dataclass(frozen=True)
class Point:
    """One point of a curve: a run, and the run that it is held against."""

    curve: str  # removal, window or control
    deficit: str
    epoch: int  # of removal, of onset, or where the control begins
    run: Run
    reference: Run


def needs_control(config: CriticalPeriod) -> bool:
    """Say whether the lr-matched control is run; under a constant learning rate it is the clear run itself."""
    return bool(config.removal) and not is_constant(config.training.model_dump())


def points(config: CriticalPeriod) -> list[Point]:
    """Give every point of every curve."""
    clear, titles = Run(_clear_epochs(config)), [d.title() for d in (config.deficit, *config.selectivity)]
    removal = sorted({0, *config.removal}) if config.removal else []
    made = [Point("removal", title, n, _removed(config, title, n), clear) for title in titles for n in removal]
    if needs_control(config):
        made += [Point("control", "", n, Run(clear.epochs, first_epoch=n), clear) for n in removal]
    return [*made, *_window_points(config)]


def traced(config: CriticalPeriod) -> list[Run]:
    """Give the runs that are looked at all along: with the deficit, and as long without."""
    if config.trace is None:
        return []
    impaired = _removed(config, config.deficit.title(), config.trace.end)
    return [impaired, Run(impaired.epochs)]


def runs(config: CriticalPeriod) -> list[Run]:
    """Give every run, each once: those of the curves, what they are held against, those that are traced."""
    every = [run for point in points(config) for run in (point.reference, point.run)]
    return list(dict.fromkeys([*every, *traced(config)]))


def plan(config: CriticalPeriod) -> dict[str, dict[str, Any]]:
    """Give the settings of each run's cells, by label."""
    data = resolved(config)
    deficits = {d.title(): d.model_dump(exclude={"label"}) for d in (config.deficit, *config.selectivity)}
    looked_at = {run.label for run in traced(config)}

    def settings(run: Run) -> dict[str, Any]:
        changed = {"epochs": run.epochs} | ({"first_epoch": run.first_epoch} if run.first_epoch else {})
        deficit = {**deficits[run.deficit], "start": run.start, "end": run.end} if run.deficit else None
        probes = data["trace"]["probes"] if run.label in looked_at else []
        return {
            **{key: data[key] for key in ("experiment", "benchmark", "model")},
            "training": data["training"] | changed,
            "strategy": {"name": "naive"},
            "deficit": deficit,
            "probes": [_AT_END, *(probes if deficit else clear_views(probes))],
        }

    return {run.label: settings(run) for run in runs(config)}


def curves(config: CriticalPeriod, records: Sequence[Record]) -> pd.DataFrame:
    """Give every point of every curve: columns `CURVE_COLUMNS`.

    ``accuracy`` is on clear test data at the end, ``loss`` how far it is below that of the reference,
    paired by seed, with 95 % intervals, of ``loss_n`` seeds; ``p`` of the paired t-test, ``p_holm``
    adjusted for the points of the curve. ``train_accuracy`` is on clear training data. Seeds that
    ``diverged`` are in no mean.
    """
    lost_seeds = diverged(records)
    test, train = _accuracies(records), _train_accuracies(records)
    rows = []
    for point in points(config):
        own, reference = test.get(point.run.label, {}), test.get(point.reference.label, {})
        lost = [reference[seed] - own[seed] for seed in own if seed in reference]
        same = point.run == point.reference
        rows.append(
            (
                *(point.curve, point.deficit, point.epoch, point.run.label, point.reference.label),
                *mean_and_interval(list(own.values())),
                lost_seeds[point.run.label],
                mean_and_interval(list(train.get(point.run.label, {}).values())).mean,
                *mean_and_interval([] if same else lost),
                np.nan if same else paired_p(lost),
            )
        )
    table = pd.DataFrame(rows, columns=CURVE_COLUMNS[:-1])
    adjusted = table.groupby(["curve", "deficit"], sort=False)["p"].transform(holm)
    return table.assign(p_holm=adjusted.astype(float))


def explained(config: CriticalPeriod, records: Sequence[Record]) -> pd.DataFrame:
    """Say how much of each loss the lr-matched control loses too: columns `CONTROL_COLUMNS`, no rows without a control.

    ``explained`` is the control's mean loss as a share of the mean loss, NaN where the interval of that
    reaches 0. ``left`` is the rest of the loss, paired by seed, with its 95 % interval and the
    p-value of the paired t-test, ``p_holm`` adjusted for the deficit's points.
    """
    test, rows = _accuracies(records), []
    clear = test.get(Run(_clear_epochs(config)).label, {})
    for point in points(config) if needs_control(config) else []:
        if point.curve != "removal" or not point.epoch:
            continue
        own, control = test.get(point.run.label, {}), test.get(_control(config, point.epoch).label, {})
        seeds = [seed for seed in own if seed in control and seed in clear]
        loss, matched = (
            float(np.mean([clear[s] - of[s] for s in seeds])) if seeds else np.nan for of in (own, control)
        )
        left = [control[s] - own[s] for s in seeds]
        certain = mean_and_interval([clear[s] - own[s] for s in seeds]).ci_low > 0
        share = matched / loss if certain else np.nan
        rows.append((point.deficit, point.epoch, loss, matched, share, *mean_and_interval(left), paired_p(left)))
    table = pd.DataFrame(rows, columns=CONTROL_COLUMNS[:-1])
    return table.assign(p_holm=table.groupby("deficit", sort=False)["p"].transform(holm).astype(float))


def share_shifts(config: CriticalPeriod, records: Sequence[Record]) -> pd.DataFrame:
    """Give how far the layers' shares of the Fisher trace on clear data move from the end of the deficit to the end."""
    if config.trace is None:
        return pd.DataFrame()
    labels = [run.label for run in traced(config)]
    return shift_table([r for r in records if r["label"] in labels], since=(0, config.trace.end))


def _window_points(config: CriticalPeriod) -> Iterator[Point]:
    if config.window is None:
        return
    title = config.deficit.title()
    for onset in config.window.onsets:
        end = onset + config.window.length
        epochs = end + _clear_epochs(config)
        yield Point("window", title, onset, Run(epochs, title, onset, end), Run(epochs))


def _removed(config: CriticalPeriod, title: str, epoch: int) -> Run:
    epochs = epoch + _clear_epochs(config)
    return Run(epochs, title, 0, epoch) if epoch else Run(epochs)


def _control(config: CriticalPeriod, epoch: int) -> Run:
    return Run(_clear_epochs(config), first_epoch=epoch)


def _clear_epochs(config: Experiment) -> int:
    epochs = config.training.epochs
    return epochs if isinstance(epochs, int) else epochs[0]


def _accuracies(records: Sequence[Record]) -> dict[str, dict[int, float]]:
    """Give the final test accuracy by label and seed."""
    found: dict[str, dict[int, float]] = {}
    for r in records:
        if r["status"] == "finished":
            found.setdefault(r["label"], {})[r["seed"]] = r["accuracy"][-1][-1]
    return found


def _train_accuracies(records: Sequence[Record]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for r in records:
        own = [row.value for row in rows_of(r) if row.probe == _AT_END["label"]]
        if r["status"] == "finished" and own:
            found.setdefault(r["label"], {})[r["seed"]] = own[-1]
    return found
