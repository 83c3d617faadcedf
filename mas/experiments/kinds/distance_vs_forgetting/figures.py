"""Figures of distances and forgetting."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mas.experiments.kinds.distance_vs_forgetting.config import NAIVE, DistanceVsForgetting
from mas.experiments.report.drawing import blank, colour, legend_below, legend_beside
from mas.experiments.report.text import number

OUTCOMES = {
    "drop": "drop of an earlier task, percentage points",
    "transfer": "transfer to the next task",
    "forgetting": "forgetting, percentage points",
    "ACC": "ACC",
}
"""Outcome -> what an axis says."""

_SPREAD = 0.5  # of the strategies around the line of their score, in units of lines


def figures(config: DistanceVsForgetting, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return every figure of a run."""
    correlations = tables["correlations"]
    best = best_distance(correlations)
    if best is None:
        return {}
    return {
        "drop": draw_drop(tables["steps"], correlations, best),
        "correlations_step": draw_correlations(correlations, "step"),
        "correlations_stream": draw_correlations(correlations, "stream"),
        "streams": draw_streams(tables["streams"], correlations, f"heterogeneity_{base_distance(best)}"),
    }


def best_distance(correlations: pd.DataFrame) -> str | None:
    """Return the distance of two tasks that goes best with what naive forgets: the greatest |ρ|; None without any."""
    steps = correlations[(correlations["level"] == "step") & (correlations["outcome"] == "drop")]
    own = steps[(steps["strategy"] == NAIVE) & ~steps["score"].str.startswith("norm_")].dropna(subset="rho")
    return None if own.empty else str(own.loc[own["rho"].abs().idxmax(), "score"])


def base_distance(score: str) -> str:
    """Return the name of a distance without its direction."""
    return score.removesuffix("_forward").removesuffix("_backward")


def title_of(score: str) -> str:
    """Return the words for a score of tasks."""
    directed = score.replace("_forward", ", earlier → learned").replace("_backward", ", learned → earlier")
    return (
        directed.replace("_", " ").replace("norm earlier", "norm of earlier").replace("norm learned", "norm of learned")
    )


def in_words(rho: float, low: float = np.nan, high: float = np.nan) -> str:
    """Return a correlation with its interval, if it has one."""
    return number(rho, low, high, ".2f")


def draw_drop(steps: pd.DataFrame, correlations: pd.DataFrame, distance: str) -> Figure:
    """Draw what learning a task does to each earlier one against their distance: a panel for each strategy."""
    strategies = list(dict.fromkeys(steps["strategy"]))
    figure, panels = blank(3.6 * len(strategies), 3.6, 1, len(strategies))
    axes_list = np.atleast_1d(panels)
    for place, (axes, strategy) in enumerate(zip(axes_list, strategies, strict=True)):
        own = steps[steps["strategy"] == strategy]
        axes.scatter(own[distance], 100 * own["drop"], s=10, color=colour(place), alpha=0.5, linewidths=0)
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        rho = _correlation(correlations, "step", strategy, distance, "drop")
        axes.set(title=f"{strategy}: ρ = {rho}", xlabel=f"distance: {title_of(distance)}")
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.sharey(axes_list[0])
        axes.grid(alpha=0.3)
    axes_list[0].set_ylabel(OUTCOMES["drop"])
    return figure


def draw_correlations(correlations: pd.DataFrame, level: str) -> Figure:
    """Draw ρ with its interval for each score (line) and strategy (colour): a panel for each outcome."""
    own = correlations[correlations["level"] == level]
    scores = list(dict.fromkeys(own["score"]))
    strategies = list(dict.fromkeys(own["strategy"]))
    outcomes = list(dict.fromkeys(own["outcome"]))
    figure, panels = blank(2.4 + 3.4 * len(outcomes), 1.4 + 0.38 * len(scores), 1, len(outcomes))
    for axes, outcome in zip(panels, outcomes, strict=True):
        for place, strategy in enumerate(strategies):
            rows = own[(own["outcome"] == outcome) & (own["strategy"] == strategy)]
            offset = _SPREAD * (place / max(1, len(strategies) - 1) - 0.5)
            heights = [scores.index(score) + offset for score in rows["score"]]
            label = strategy if axes is panels[0] else None  # each strategy stands in the legend once
            _draw_intervals(axes, rows, heights, place, label)
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set(title=outcome, xlabel="Spearman's ρ, 95 % interval", xlim=(-1, 1), ylim=(len(scores) - 0.4, -0.6))
        axes.set_yticks(range(len(scores)), [title_of(score) for score in scores] if axes is panels[0] else [])
        axes.grid(alpha=0.3)
    legend_below(figure, panels[0])
    return figure


def draw_streams(streams: pd.DataFrame, correlations: pd.DataFrame, score: str) -> Figure:
    """Draw the forgetting of each stream against a score of its tasks."""
    figure, axes = blank(6.4, 3.8)
    for place, (strategy, own) in enumerate(streams.groupby("strategy", sort=False)):
        rho = _correlation(correlations, "stream", str(strategy), score, "forgetting")
        axes.scatter(own[score], 100 * own["forgetting"], s=18, color=colour(place), label=f"{strategy}: ρ = {rho}")
    axes.set(xlabel=title_of(score), ylabel=OUTCOMES["forgetting"], title="Each point is a stream")
    axes.grid(alpha=0.3)
    legend_beside(axes)
    return figure


def _draw_intervals(axes: Axes, rows: pd.DataFrame, heights: list[float], place: int, label: str | None) -> None:
    """Draw dots with intervals at these heights; with too few seeds there are dots alone."""
    below = (rows["rho"] - rows["ci_low"]).clip(lower=0)
    above = (rows["ci_high"] - rows["rho"]).clip(lower=0)
    bars = np.vstack([below, above])
    axes.errorbar(rows["rho"], heights, xerr=bars, fmt="o", markersize=4, color=colour(place), label=label, capsize=2)


def _correlation(correlations: pd.DataFrame, level: str, strategy: str, score: str, outcome: str) -> str:
    """Return ρ with its interval in words."""
    wanted = {"level": level, "strategy": strategy, "score": score, "outcome": outcome}
    rows = correlations[np.logical_and.reduce([correlations[key] == value for key, value in wanted.items()])]
    return in_words(*rows.iloc[0][["rho", "ci_low", "ci_high"]])
