"""Figures, without global state; each function gives one, or PNGs by name."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mas.experiments.critical_period import CLEAR
from mas.experiments.probed import TOTAL, fisher_traces

_MOST_PANELS = 6
_UNITS = {"fisher_trace": "nats / weight²", "information": "nats", "loss": "nats", "trainability": "nats"}
_OPEN = {"linestyle": "", "markerfacecolor": "white", "zorder": 3, "label": None}


def blank(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Give an empty figure and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)  # no pyplot: no global state
    return figure, figure.subplots(rows, columns)


def png(figure: Figure) -> bytes:
    """Give a figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def as_drawn(traces: pd.DataFrame) -> pd.DataFrame:
    """Leave out the layers of what has a sum."""
    summed = set(traces[traces["part"] == TOTAL]["probe"])
    return traces[(traces["part"] == TOTAL) | ~traces["probe"].isin(summed)]


def draw_stream_traces(traces: pd.DataFrame) -> dict[str, bytes]:
    """Draw what each probe saw along a stream: a line for each strategy, a panel for each part."""
    figures = {}
    drawn = as_drawn(traces)
    length = drawn.groupby(["label", "experience"])["iteration"].transform("max").clip(lower=1)
    placed = drawn.assign(x=drawn["experience"] + drawn["iteration"] / length)
    for (probe, view), own in placed.groupby(["probe", "data"], sort=False):
        parts, left_out = _parts(own)
        figure, panels = blank(7.6, 1.0 + 2.6 * len(parts), len(parts))
        for axes, part in zip(np.atleast_1d(panels), parts, strict=True):
            for i, (label, line) in enumerate(own[own["part"] == part].groupby("label", sort=False)):
                _line(axes, line["x"], line, _colour(i), label=label)
            axes.set(ylabel=_heading(probe, part), xlabel="experiences trained")
            axes.xaxis.get_major_locator().set_params(integer=True)
        np.atleast_1d(panels)[0].set_title(f"{probe}, measured on {view} data{left_out}")
        np.atleast_1d(panels)[0].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figures[f"trace_{probe}_{view}"] = png(figure)
    return figures


def draw_removal(curves: pd.DataFrame) -> Figure:
    """Draw accuracy against the epoch of removal; dashed: no deficit; dotted: the lr-matched control."""
    figure, axes = blank(7.0, 4.2)
    removal = curves[curves["curve"] == "removal"]
    clear = removal[removal["epoch"] == 0]["accuracy"].mean()
    axes.axhline(100 * clear, color="0.4", linestyle="--", label="no deficit")
    for i, (deficit, own) in enumerate(removal.groupby("deficit", sort=False)):
        _bars(axes, own["epoch"], own, _colour(i), marker="o", label=deficit)
    control = curves[curves["curve"] == "control"]
    if len(control):
        _bars(axes, control["epoch"], control, "0.2", marker="s", linestyle=":", label="lr-matched control")
    axes.set(
        xlabel="epoch of removal",
        ylabel="test accuracy at the end, %",
        title="Accuracy after a deficit and equally many clear epochs",
    )
    return _finished(figure, axes)


def draw_window(curves: pd.DataFrame, traces: pd.DataFrame, length: int) -> Figure:
    """Draw the loss of accuracy against the onset of the window, over the Fisher trace of the clear run, if traced."""
    figure, axes = blank(7.0, 4.2)
    own = curves[curves["curve"] == "window"]
    loss = own.assign(accuracy=own["loss"], ci_low=own["loss_ci_low"], ci_high=own["loss_ci_high"])
    _bars(axes, own["epoch"], loss, _colour(0), marker="o", label="loss of accuracy")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(
        xlabel=f"epoch at which the window of {length} epochs begins",
        ylabel="loss of test accuracy, points",
        title="Sensitivity to the deficit",
    )
    clear = fisher_traces(traces[traces["label"].str.startswith(CLEAR) & (traces["part"] == TOTAL)])
    clear = clear[clear["data"] == "train"]
    if len(clear):
        right = axes.twinx()
        right.plot(_in_epochs(clear), clear["mean"], color=_colour(1), alpha=0.8, label="Fisher trace without deficit")
        right.set_ylabel(f"Fisher trace, {_UNITS['fisher_trace']}", color=_colour(1))
    return _finished(figure, axes)


def draw_traces(traces: pd.DataFrame, labels: Sequence[str], end: int) -> dict[str, Figure]:
    """Draw each probe over the epochs, with the deficit and without; a line for each data it looked at."""
    figures = {}
    for probe, of_probe in as_drawn(traces[traces["label"].isin(labels)]).groupby("probe", sort=False):
        if of_probe["epoch"].nunique() < 2:
            continue
        parts, left_out = _parts(of_probe)
        figure, panels = blank(7.6, 1.0 + 3.0 * len(parts), len(parts))
        for axes, part in zip(np.atleast_1d(panels), parts, strict=True):
            of_part = of_probe[of_probe["part"] == part]
            for i, ((label, view), line) in enumerate(of_part.groupby(["label", "data"], sort=False)):
                name, style = ("without", "--") if label.startswith(CLEAR) else ("with deficit", "-")
                _line(axes, _in_epochs(line), line, _colour(i), label=f"{name}, on {view}", linestyle=style)
            axes.axvline(end, color="0.6", linewidth=0.8, linestyle=":")
            axes.set(xlabel="epoch", ylabel=_heading(probe, part))
            if part == TOTAL:
                axes.set_yscale("log")
        np.atleast_1d(panels)[0].set_title(f"{probe}; dotted: the deficit ends{left_out}")
        np.atleast_1d(panels)[0].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figures[f"trace_{probe}"] = figure
    return figures


def draw_shares(traces: pd.DataFrame, labels: Sequence[str], end: int, view: str) -> Figure:
    """Draw the layers' shares of the Fisher trace over the epochs, stacked, a panel a run; dark: near the input."""
    of_view = fisher_traces(traces[traces["data"] == view])
    labels = [label for label in labels if (of_view["label"] == label).any()]  # as far as they are finished
    figure, panels = blank(5.2 * len(labels), 3.8, 1, len(labels))
    for axes, label in zip(np.atleast_1d(panels), labels, strict=True):
        own = of_view[(of_view["label"] == label) & (of_view["part"] != TOTAL)]
        own = own.assign(at=_in_epochs(own)).pivot_table(index="at", columns="part", values="mean", sort=False)
        shares = own.div(own.sum(axis=1), axis=0).sort_index()
        depth = mpl.colormaps["viridis"](np.linspace(0, 1, len(shares.columns)))
        axes.stackplot(shares.index, 100 * shares.T.to_numpy(), labels=list(shares.columns), colors=depth)
        axes.axvline(end, color="white", linestyle=":")
        axes.set(xlabel="epoch", ylabel="share of the Fisher trace, %", title=label, ylim=(0, 100))
        axes.margins(x=0)
    np.atleast_1d(panels)[-1].legend(
        frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="layer", reverse=True
    )
    return figure


def draw_strengths(scores: pd.DataFrame) -> Figure:
    """Draw accuracy against the strength of protection: a panel for each length of the deficit."""
    own = scores[scores["score"] == "accuracy"].rename(columns={"mean": "accuracy"})
    lengths = list(dict.fromkeys(own["length"]))
    figure, panels = blank(4.6 * len(lengths), 4.0, 1, len(lengths))
    for axes, length in zip(np.atleast_1d(panels), lengths, strict=True):
        for i, (strategy, line) in enumerate(own[own["length"] == length].groupby("strategy", sort=False)):
            if line["strength"].isna().all():
                axes.axhline(100 * line["accuracy"].iloc[0], color=_colour(i), linestyle="--", label=strategy)
            else:
                _bars(axes, line["strength"], line, _colour(i), marker="o", label=strategy)
        _scale_strengths(axes, own["strength"])
        axes.set(xlabel="strength λ", ylabel="test accuracy at the end, %", title=f"deficit of {length} epochs")
        axes.grid(alpha=0.3)
    np.atleast_1d(panels)[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _scale_strengths(axes: Any, strengths: pd.Series) -> None:
    """Scale the axis of the strengths by their logarithm, with a place for 0 if it is one of them."""
    positive = strengths[strengths > 0]
    if positive.empty:
        axes.set_xticks([])
        return
    axes.set_xscale("symlog", linthresh=positive.min())
    axes.set_xlim(0 if (strengths == 0).any() else positive.min() / 2, 2 * positive.max())


def _parts(own: pd.DataFrame) -> tuple[list[str], str]:
    """Give the parts that are drawn, and what to say of those that are not."""
    parts = list(dict.fromkeys(own["part"]))
    return parts[:_MOST_PANELS], f"; {_MOST_PANELS} of {len(parts)} parts" if len(parts) > _MOST_PANELS else ""


def _in_epochs(line: pd.DataFrame) -> pd.Series:
    """Give the time of each look in epochs, of which iterations are fractions."""
    return line["iteration"] * (line["epoch"].max() / max(1, line["iteration"].max()))


def _heading(probe: Any, part: str) -> str:
    unit = next((f", {unit}" for name, unit in _UNITS.items() if str(probe).startswith(name)), "")
    return str(probe) + ("" if part in ("", TOTAL) else f": {part}") + unit


def _line(axes: Any, x: pd.Series, line: pd.DataFrame, colour: Any, **style: Any) -> None:
    axes.plot(x, line["mean"], color=colour, **style)
    axes.fill_between(x, line["ci_low"], line["ci_high"], color=colour, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)


def _bars(axes: Any, x: pd.Series, own: pd.DataFrame, colour: Any, **style: Any) -> None:
    """Draw ``accuracy`` with its interval; points that lack seeds are open."""
    low, high = own["accuracy"] - own["ci_low"], own["ci_high"] - own["accuracy"]
    axes.errorbar(x, 100 * own["accuracy"], 100 * np.vstack([low, high]).clip(min=0), capsize=3, color=colour, **style)
    some = own["diverged"] > 0
    axes.plot(x[some], 100 * own["accuracy"][some], **style | _OPEN, color=colour)


def _finished(figure: Figure, axes: Any) -> Figure:
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    for other in figure.axes:
        if other is not axes:
            more = other.get_legend_handles_labels()
            handles, labels = handles + more[0], labels + more[1]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _colour(number: int) -> Any:
    return mpl.colormaps["tab10"](number % 10)
