"""Figures of experts: the errors of all experts by task with the selected one, and a heat map of the errors."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mas.experiments.kinds.expert_selection.config import ExpertSelection
from mas.experiments.kinds.expert_selection.plan import GENERIC
from mas.experiments.report.drawing import blank, colour, legend_beside

_MOST_NUMBERS = 20  # rows or columns of a heat map with numbers in its cells


def figures(config: ExpertSelection, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return every figure of a run; there is none until tasks are embedded and two experts are measured."""
    choices = tables["choices"]
    own = choices[choices["distance"] == config.distance]
    if own.empty:
        return {}
    return {
        "experts": draw_experts(tables["errors"], own, config.distance),
        "errors": draw_errors(tables["errors"], own, config.distance),
    }


def draw_experts(errors: pd.DataFrame, choices: pd.DataFrame, distance: str) -> Figure:
    """Draw the error of every expert by task, easy tasks first, with the selected expert, the best and chance.

    Args:
        errors: see `tables.errors_table`.
        choices: of one distance, see `tables.choices_table`.
        distance: its name.
    """
    numbers = ["error", "best", "chance", "generic"]
    by_task = 100 * choices.groupby("task", sort=False)[numbers].mean().sort_values("best", kind="stable")
    x = np.arange(len(by_task))
    place = dict(zip(by_task.index, x, strict=True))
    figure, axes = blank(3.4 + 0.5 * len(by_task), 4.4)
    dots = _transfer_errors(errors).groupby(["expert", "task"], sort=False)["error"].mean().reset_index()
    dots = dots[dots["task"].isin(list(place))]
    axes.plot(dots["task"].map(place), 100 * dots["error"], "o", color="0.75", markersize=4, label="an expert")
    axes.hlines(by_task["chance"], x - 0.3, x + 0.3, color="0.4", linestyle=":", label="chance: mean of experts")
    axes.hlines(by_task["best"], x - 0.3, x + 0.3, color="black", label="best expert of each seed")
    axes.plot(x, by_task["generic"], "s", color=colour(1), markerfacecolor="none", label="probe network itself")
    axes.plot(x, by_task["error"], "D", color=colour(0), markersize=6, label=f"selected: {distance}")
    axes.set(ylabel="test error, %", title="Experts on new tasks")
    axes.set_ylim(bottom=0)
    _name_tasks(axes, list(by_task.index))
    axes.grid(axis="y", alpha=0.3)
    legend_beside(axes)
    return figure


def draw_errors(errors: pd.DataFrame, choices: pd.DataFrame, distance: str) -> Figure:
    """Draw a heat map: the error of each expert (row) on each task (column), above the best expert's of the column.

    Args:
        errors: see `tables.errors_table`.
        choices: of one distance; the expert that is selected by most seeds has a frame.
        distance: its name.
    """
    means = 100 * errors.pivot_table(index="expert", columns="task", values="error", sort=False)
    tasks = list(dict.fromkeys(errors["task"]))
    means = means[tasks]
    is_own = np.array([[expert == task for task in tasks] for expert in means.index])
    is_expert = (means.index != GENERIC)[:, None]
    best = means.where(is_expert & ~is_own).min()
    above = (means - best).mask(is_own)
    figure, axes = blank(3.0 + 0.62 * len(tasks), 1.8 + 0.4 * len(means))
    axes.set_facecolor("0.92")
    image = axes.imshow(above, cmap="viridis_r", aspect="auto")
    figure.colorbar(image, label="error above the best expert's, points")
    if max(means.shape) <= _MOST_NUMBERS:
        _write_numbers(axes, means, above)
    _frame_selected(axes, means, choices)
    axes.set_yticks(range(len(means)), list(means.index))
    axes.set(xlabel="new task", ylabel="expert trained on", title=f"Test error, %; framed: selected ({distance})")
    _name_tasks(axes, tasks)
    return figure


def _transfer_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Return the errors of experts on tasks that they were not trained on."""
    return errors[(errors["expert"] != GENERIC) & (errors["expert"] != errors["task"])]


def _write_numbers(axes: Axes, means: pd.DataFrame, above: pd.DataFrame) -> None:
    middle = np.nanmean([np.nanmin(above), np.nanmax(above)])
    for row, column in np.argwhere(means.notna().to_numpy()):
        value, shade = means.iloc[row, column], above.iloc[row, column]
        ink = "0.5" if np.isnan(shade) else "white" if shade > middle else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)


def _frame_selected(axes: Axes, means: pd.DataFrame, choices: pd.DataFrame) -> None:
    experts = list(means.index)
    for task, own in choices.groupby("task", sort=False):
        selected = own["expert"].mode()[0]
        corner = (list(means.columns).index(task) - 0.5, experts.index(selected) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour(3), linewidth=2))


def _name_tasks(axes: Axes, tasks: list[str]) -> None:
    long = max(map(len, tasks)) > 3
    axes.set_xticks(range(len(tasks)), tasks, rotation=60 if long else 0, ha="right" if long else "center")
