"""Figures of critical periods."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mas.experiments.kinds.critical_period.config import CriticalPeriod
from mas.experiments.kinds.critical_period.plan import traced_runs
from mas.experiments.report.drawing import (
    UNITS,
    axis_title,
    blank,
    colour,
    draw_line,
    draw_points,
    in_epochs,
    legend_below,
    legend_beside,
    shown_parts,
)
from mas.experiments.traces import FISHER, TOTAL, as_drawn, fisher_traces


def figures(config: CriticalPeriod, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return every figure of a run."""
    made: dict[str, Figure] = {}
    if config.removal:
        made["removal"] = draw_removal(tables["curves"])
    if config.window:
        made["window"] = draw_window(config, tables["curves"], tables["traces"])
    if config.trace:
        made |= draw_traces(config, tables["traces"])
        if "train" in set(fisher_traces(tables["traces"], config.probes)["data"]):
            made["shares"] = draw_shares(config, tables["traces"], "train")
    return made


def draw_removal(curves: pd.DataFrame) -> Figure:
    """Draw accuracy against the epoch of removal; dashed: no deficit; dotted: the lr-matched control."""
    figure, axes = blank(7.0, 4.2)
    removal = curves[curves["curve"] == "removal"]
    clear = removal[removal["epoch"] == 0]["accuracy"].mean()
    axes.axhline(100 * clear, color="0.4", linestyle="--", label="no deficit")
    for i, (deficit, own) in enumerate(removal.groupby("deficit", sort=False)):
        draw_points(axes, own["epoch"], own, colour(i), marker="o", label=deficit)
    control = curves[curves["curve"] == "control"]
    if len(control):
        draw_points(axes, control["epoch"], control, "0.2", marker="s", linestyle=":", label="lr-matched control")
    axes.set(
        xlabel="epoch of removal",
        ylabel="test accuracy at the end, %",
        title="Accuracy after a deficit and equally many clear epochs",
    )
    legend_below(figure, axes)
    return figure


def draw_window(config: CriticalPeriod, curves: pd.DataFrame, traces: pd.DataFrame) -> Figure:
    """Draw the loss of accuracy against the onset of the window, over the Fisher trace of the clear run, if traced."""
    figure, axes = blank(7.0, 4.2)
    own = curves[curves["curve"] == "window"]
    loss = own.assign(accuracy=own["loss"], ci_low=own["loss_ci_low"], ci_high=own["loss_ci_high"])
    draw_points(axes, own["epoch"], loss, colour(0), marker="o", label="loss of accuracy")
    axes.axhline(0, color="0.6", linewidth=0.8)
    length = config.window.length if config.window else 0
    axes.set(
        xlabel=f"epoch at which the window of {length} epochs begins",
        ylabel="loss of test accuracy, points",
        title="Sensitivity to the deficit",
    )
    clear = _clear_fisher_trace(config, traces)
    if len(clear):
        right = axes.twinx()
        right.plot(in_epochs(clear), clear["mean"], color=colour(1), alpha=0.8, label="Fisher trace without deficit")
        right.set_ylabel(f"Fisher trace, {UNITS[FISHER]}", color=colour(1))
    legend_below(figure, axes)
    return figure


def draw_traces(config: CriticalPeriod, traces: pd.DataFrame) -> dict[str, Figure]:
    """Draw each probe over the epochs, with the deficit and without; a line for each data it looked at."""
    labels = [run.label for run in traced_runs(config)]
    drawn = as_drawn(traces[traces["label"].isin(labels)])
    return {
        f"trace_{probe}": _draw_probe(config, str(probe), own)
        for probe, own in drawn.groupby("probe", sort=False)
        if own["epoch"].nunique() > 1
    }


def draw_shares(config: CriticalPeriod, traces: pd.DataFrame, view: str) -> Figure:
    """Draw the layers' shares of the Fisher trace over the epochs, stacked, a panel a run; dark: near the input."""
    fisher = fisher_traces(traces, config.probes)
    of_view = fisher[(fisher["data"] == view) & (fisher["part"] != TOTAL)]
    runs = [run for run in traced_runs(config) if (of_view["label"] == run.label).any()]  # as far as they are finished
    figure, panels = blank(5.2 * len(runs), 3.8, 1, len(runs))
    for axes, run in zip(np.atleast_1d(panels), runs, strict=True):
        own = of_view[of_view["label"] == run.label]
        by_layer = own.assign(at=in_epochs(own)).pivot_table(index="at", columns="part", values="mean", sort=False)
        shares = by_layer.div(by_layer.sum(axis=1), axis=0).sort_index()
        depth = mpl.colormaps["viridis"](np.linspace(0, 1, len(shares.columns)))
        axes.stackplot(shares.index, 100 * shares.T.to_numpy(), labels=list(shares.columns), colors=depth)
        axes.axvline(_end(config), color="white", linestyle=":")
        axes.set(xlabel="epoch", ylabel="share of the Fisher trace, %", title=run.label, ylim=(0, 100))
        axes.margins(x=0)
    legend_beside(np.atleast_1d(panels)[-1], title="layer", reverse=True)
    return figure


def _draw_probe(config: CriticalPeriod, title: str, own: pd.DataFrame) -> Figure:
    impaired = [run.label for run in traced_runs(config) if run.deficit is not None]
    parts, left_out = shown_parts(own)
    figure, panels = blank(7.6, 1.0 + 3.0 * len(parts), len(parts))
    for axes, part in zip(np.atleast_1d(panels), parts, strict=True):
        of_part = own[own["part"] == part]
        for i, ((label, view), line) in enumerate(of_part.groupby(["label", "data"], sort=False)):
            name, style = ("with deficit", "-") if label in impaired else ("without", "--")
            draw_line(axes, in_epochs(line), line, colour(i), label=f"{name}, on {view}", linestyle=style)
        axes.axvline(_end(config), color="0.6", linewidth=0.8, linestyle=":")
        axes.set(xlabel="epoch", ylabel=axis_title(title, part, config.probes))
        if part == TOTAL:
            axes.set_yscale("log")
    first = np.atleast_1d(panels)[0]
    first.set_title(f"{title}; dotted: the deficit ends{left_out}")
    legend_beside(first)
    return figure


def _clear_fisher_trace(config: CriticalPeriod, traces: pd.DataFrame) -> pd.DataFrame:
    clear = [run.label for run in traced_runs(config) if run.deficit is None]
    fisher = fisher_traces(traces, config.probes)
    return fisher[fisher["label"].isin(clear) & (fisher["part"] == TOTAL) & (fisher["data"] == "train")]


def _end(config: CriticalPeriod) -> int:
    return config.trace.end if config.trace else 0
