"""Figures of a consolidated deficit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mas.experiments.kinds.consolidated_deficit.config import ConsolidatedDeficit
from mas.experiments.report.drawing import blank, colour, draw_points, legend_beside


def figures(config: ConsolidatedDeficit, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return every figure of a run."""
    return {"strengths": draw_strengths(tables["scores"])}


def draw_strengths(scores: pd.DataFrame) -> Figure:
    """Draw accuracy against the strength of protection: a panel for each length of the deficit."""
    own = scores[scores["score"] == "accuracy"].rename(columns={"mean": "accuracy"})
    lengths = list(dict.fromkeys(own["length"]))
    figure, panels = blank(4.6 * len(lengths), 4.0, 1, len(lengths))
    for axes, length in zip(np.atleast_1d(panels), lengths, strict=True):
        for i, (strategy, line) in enumerate(own[own["length"] == length].groupby("strategy", sort=False)):
            if line["strength"].isna().all():
                axes.axhline(100 * line["accuracy"].iloc[0], color=colour(i), linestyle="--", label=strategy)
            else:
                draw_points(axes, line["strength"], line, colour(i), marker="o", label=strategy)
        _scale_strengths(axes, own["strength"])
        axes.set(xlabel="strength λ", ylabel="test accuracy at the end, %", title=f"deficit of {length} epochs")
        axes.grid(alpha=0.3)
    legend_beside(np.atleast_1d(panels)[-1])
    return figure


def _scale_strengths(axes: Any, strengths: pd.Series) -> None:
    """Scale the axis of the strengths by their logarithm, with a place for 0 if it is one of them."""
    positive = strengths[strengths > 0]
    if positive.empty:
        axes.set_xticks([])
        return
    axes.set_xscale("symlog", linthresh=positive.min())
    axes.set_xlim(0 if (strengths == 0).any() else positive.min() / 2, 2 * positive.max())
