"""Drawing in one style, without global state."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mas.experiments.config.schema import ProbeOptions
from mas.experiments.traces import TOTAL

UNITS = {"fisher_trace": "nats / weight²", "information": "nats", "loss": "nats", "trainability": "nats"}
"""By the name of a probe; others have no unit."""

Colour = str | tuple[float, float, float, float]  # a name, or red, green, blue and opacity

_MOST_PANELS = 6
_OPEN = {"linestyle": "", "markerfacecolor": "white", "zorder": 3, "label": None}


def blank(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Return an empty figure and its axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)  # no pyplot: no global state
    return figure, figure.subplots(rows, columns)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def colour(number: int) -> Colour:
    """Return the colour of the line with a number."""
    return mpl.colormaps["tab10"](number % 10)


def shown_parts(own: pd.DataFrame) -> tuple[list[str], str]:
    """Return the parts of a probe that are drawn, and a note for the title if some are left out."""
    parts = list(dict.fromkeys(own["part"]))
    if len(parts) <= _MOST_PANELS:
        return parts, ""
    note = f"; {_MOST_PANELS} of {len(parts)} parts"
    return parts[:_MOST_PANELS], note


def in_epochs(line: pd.DataFrame) -> pd.Series:
    """Return the time of each measurement in epochs; iterations are fractions of them."""
    last_iteration = max(1, line["iteration"].max())
    epochs_per_iteration = line["epoch"].max() / last_iteration
    return line["iteration"] * epochs_per_iteration


def axis_title(title: str, part: str, probes: Sequence[ProbeOptions]) -> str:
    """Return the name of what an axis shows: a probe, its part and its unit."""
    names = {probe.title(): probe.name for probe in probes}
    unit = UNITS.get(names.get(title, ""))
    name = title if part in ("", TOTAL) else f"{title}: {part}"
    return f"{name}, {unit}" if unit else name


def draw_line(axes: Axes, x: pd.Series, line: pd.DataFrame, colour: Colour, **style: Any) -> None:
    """Draw a mean over time with its interval as a band."""
    axes.plot(x, line["mean"], color=colour, **style)
    axes.fill_between(x, line["ci_low"], line["ci_high"], color=colour, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)


def draw_points(axes: Axes, x: pd.Series, own: pd.DataFrame, colour: Colour, **style: Any) -> None:
    """Draw ``accuracy`` with its interval as bars; points that lack seeds are open."""
    accuracy = 100 * own["accuracy"]
    below = own["accuracy"] - own["ci_low"]
    above = own["ci_high"] - own["accuracy"]
    bars = 100 * np.vstack([below, above]).clip(min=0)
    axes.errorbar(x, accuracy, bars, capsize=3, color=colour, **style)
    some = own["diverged"] > 0
    axes.plot(x[some], accuracy[some], **style | _OPEN, color=colour)


def legend_beside(axes: Axes, **options: Any) -> None:
    """Put the legend to the right of the axes."""
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), **options)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put one legend for all axes below them."""
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    for other in figure.axes:
        if other is not axes:
            more_handles, more_labels = other.get_legend_handles_labels()
            handles = handles + more_handles
            labels = labels + more_labels
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
