"""Figures of forgetting, drawn from the tables."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mas.experiments.kinds.forgetting.config import Forgetting
from mas.experiments.report.drawing import axis_title, blank, colour, draw_line, legend_beside, shown_parts
from mas.experiments.statistics import mean_and_interval
from mas.experiments.traces import as_drawn

Matrix = np.ndarray  # R with the untrained network as its first row, shape (T + 1, T), NaN where not measured


def figures(config: Forgetting, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return every figure of a run."""
    by_label = matrices(tables["results"])
    made = {"accuracy_over_stream": draw_stream(by_label)} if by_label else {}
    for label, own in by_label.items():
        made[f"matrix_{label}"] = draw_matrix(label, own)
    if "traces" in tables:
        made |= draw_stream_traces(config, tables["traces"])
    return made


def matrices(results: pd.DataFrame) -> dict[str, list[Matrix]]:
    """Return the accuracy matrices of a results table, by label, one for each seed."""
    size = int(results["tested_on"].max()) + 1 if len(results) else 0
    found: dict[str, list[Matrix]] = {}
    for (label, _), own in results.groupby(["label", "seed"], sort=False):
        matrix = np.full((size + 1, size), np.nan)
        matrix[own["trained_on"] + 1, own["tested_on"]] = own["accuracy"]
        found.setdefault(str(label), []).append(matrix)
    return found


def draw_stream(by_label: Mapping[str, list[Matrix]]) -> Figure:
    """Draw mean accuracy on the experiences seen so far, after each; band: 95 % over seeds."""
    figure, axes = blank(7.6, 4.0)
    for number, (label, own) in enumerate(by_label.items()):
        mean, low, high = _seen_so_far(own)
        if np.isfinite(mean).sum() == 1:  # joint training: one row, drawn as a level
            axes.axhline(mean[-1], color=colour(number), linestyle="--", label=label)
            continue
        trained = range(1, len(mean) + 1)
        axes.plot(trained, mean, marker="o", color=colour(number), label=label)
        axes.fill_between(trained, low, high.clip(max=100), color=colour(number), alpha=0.15, linewidth=0)
    several = any(len(own) > 1 for own in by_label.values())
    over_seeds = ", mean and 95 % interval over seeds" if several else ""
    axes.set(
        xlabel="experiences trained",
        ylabel="accuracy on those seen so far, %",
        title=f"Accuracy over the stream{over_seeds}",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    legend_beside(axes)
    return figure


def _seen_so_far(own: list[Matrix]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean accuracy on the experiences so far after each, and its interval, in percent."""
    size = own[0].shape[1]
    points = []
    for t in range(size):
        accuracies = [matrix[t + 1, : t + 1].mean() for matrix in own]
        points.append(mean_and_interval(accuracies))
    mean = np.array([point.mean for point in points])
    low = np.array([point.ci_low for point in points])
    high = np.array([point.ci_high for point in points])
    return 100 * mean, 100 * low, 100 * high


def draw_matrix(label: str, own: list[Matrix]) -> Figure:
    """Draw the mean over seeds of R, with the untrained network as the first row."""
    mean = 100 * np.stack(own).mean(0)
    rows, columns = mean.shape
    figure, axes = blank(1.6 + 0.7 * columns, 1.2 + 0.55 * rows)
    colours = mpl.colormaps["viridis"].with_extremes(bad="0.92")
    axes.imshow(mean, vmin=0, vmax=100, cmap=colours, aspect="auto")
    if columns <= 12:
        for t, i in np.argwhere(np.isfinite(mean)):
            shade = "white" if mean[t, i] < 60 else "black"
            axes.text(i, t, f"{mean[t, i]:.0f}", ha="center", va="center", color=shade)
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows), ["untrained", *map(str, range(rows - 1))])
    axes.set(xlabel="tested on experience", ylabel="trained on", title=f"{label}: accuracy, %")
    return figure


def draw_stream_traces(config: Forgetting, traces: pd.DataFrame) -> dict[str, Figure]:
    """Draw what each probe saw along a stream: a line for each strategy, a panel for each part."""
    drawn = as_drawn(traces)
    length = drawn.groupby(["label", "experience"])["iteration"].transform("max").clip(lower=1)
    placed = drawn.assign(x=drawn["experience"] + drawn["iteration"] / length)
    return {
        f"trace_{probe}_{view}": _draw_probe(config, str(probe), str(view), own)
        for (probe, view), own in placed.groupby(["probe", "data"], sort=False)
    }


def _draw_probe(config: Forgetting, probe: str, view: str, own: pd.DataFrame) -> Figure:
    parts, left_out = shown_parts(own)
    figure, panels = blank(7.6, 1.0 + 2.6 * len(parts), len(parts))
    for axes, part in zip(np.atleast_1d(panels), parts, strict=True):
        for number, (label, line) in enumerate(own[own["part"] == part].groupby("label", sort=False)):
            draw_line(axes, line["x"], line, colour(number), label=label)
        axes.set(ylabel=axis_title(probe, part, config.probes), xlabel="experiences trained")
        axes.xaxis.get_major_locator().set_params(integer=True)
    first = np.atleast_1d(panels)[0]
    first.set_title(f"{probe}, measured on {view} data{left_out}")
    legend_beside(first)
    return figure
