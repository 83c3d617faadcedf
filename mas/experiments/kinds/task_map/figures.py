"""Figures of a map of tasks. Their sizes grow with the number of tasks, so that labels can be read."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from scipy.cluster.hierarchy import dendrogram

from mas.experiments.kinds.task_map.config import TaskMap
from mas.experiments.kinds.task_map.geometry import complete_part, symmetric, tree
from mas.experiments.kinds.task_map.labels import place_labels
from mas.experiments.kinds.task_map.tables import difficulty, square
from mas.experiments.report.drawing import Colour, blank, colour
from mas.experiments.report.text import number

UNITS = {"kl": "nats", "jensen_shannon": "nats"}
"""By the name of a distance; others have no unit."""

_LARGEST = 45.0  # inches; beyond that, labels get smaller
_ROW = 0.15  # inches that a label needs in a list


def figures(config: TaskMap, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return every figure of a run; none if every cell diverged."""
    if tables["tasks"].empty:
        return {}
    colours = stream_colours(tables["tasks"])
    distances = complete_part(square(tables["distances"], config.distance))
    made = {}
    for method, own in tables["map"].groupby("method", sort=False):
        made[f"map_{method}"] = draw_map(own, colours, _map_title(str(method), config.distance, own))
    if len(distances) > 1:
        made["heat_map"] = draw_heat_map(distances, colours, config.distance)
    made["difficulty"] = draw_difficulty(difficulty(tables["tasks"]), colours)
    return made


class StreamColours:
    """The colour of each task, that of its stream."""

    def __init__(self, streams: Mapping[str, str]):
        self.streams = streams  # by task
        self.names = list(dict.fromkeys(streams.values()))

    def of(self, task: str) -> Colour:
        """Return the colour of a task."""
        return colour(self.names.index(self.streams[task]))

    def legend(self, figure: Figure) -> None:
        """Put a legend of the streams below a figure; a single stream needs none."""
        if len(self.names) > 1:
            marks = [Line2D([], [], color=colour(i), marker="o", linestyle="") for i in range(len(self.names))]
            figure.legend(marks, self.names, loc="outside lower center", ncols=4, frameon=False)


def stream_colours(tasks: pd.DataFrame) -> StreamColours:
    """Return the colours of the tasks of a table."""
    return StreamColours(dict(zip(tasks["task"], tasks["stream"], strict=True)))


def draw_map(points: pd.DataFrame, colours: StreamColours, title: str) -> Figure:
    """Draw tasks as points with labels; one unit of both axes is equally long, and has no meaning of its own."""
    side = min(6.0 + 0.7 * np.sqrt(len(points)), _LARGEST)
    width, height = np.ptp(points[["x", "y"]].to_numpy(), axis=0)
    flatness = np.clip(height / max(width, np.finfo(np.float64).tiny), 0.5, 1.0)
    figure, axes = blank(side, side * flatness + 0.6)
    shades = [colours.of(task) for task in points["task"]]
    axes.scatter(points["x"], points["y"], c=shades, s=14, zorder=3)
    axes.set(title=title, xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.1)
    colours.legend(figure)
    place_labels(axes, points[["x", "y"]].to_numpy(), list(points["task"]), shades, size=_label_size(points["task"]))
    return figure


def draw_heat_map(distances: pd.DataFrame, colours: StreamColours, name: str) -> Figure:
    """Draw the distances from each task (row) to each (column), in the order of a clustering, with its dendrogram.

    A distance with a direction is made symmetric for the clustering alone.
    """
    count = len(distances)
    cells = max(count * _ROW, 3.0)
    width, height = (min(cells + extra, _LARGEST) for extra in (4.5, 3.0))
    figure, (left, right) = _beside(width, height, cells)
    drawn = dendrogram(
        tree(symmetric(distances.to_numpy())), orientation="left", ax=left, no_labels=True, color_threshold=0,
        above_threshold_color="0.3",
    )  # fmt: skip
    left.invert_yaxis()  # the first leaf stands in the first row
    left.set_axis_off()
    own = distances.iloc[drawn["leaves"], drawn["leaves"]]
    image = right.imshow(own.to_numpy(), cmap="viridis_r", aspect="auto", interpolation="nearest")
    size = _row_size(count, cells)
    right.set_xticks(range(count), own.columns, rotation=90, fontsize=size)
    right.set_yticks(range(count), own.index, fontsize=size)
    right.yaxis.tick_right()
    right.tick_params(length=0)
    _colour_labels([*right.get_xticklabels(), *right.get_yticklabels()], colours)
    right.set_title(f"{axis_name(name)}, from row to column")
    figure.colorbar(image, ax=left, location="bottom", shrink=0.9, aspect=12, pad=0.01)
    colours.legend(figure)
    return figure


def draw_difficulty(own: pd.DataFrame, colours: StreamColours) -> Figure:
    """Draw the norm of each task as a bar and a number, the hardest first, with its interval over seeds."""
    rows = max(len(own) * _ROW, 1.5)
    figure, axes = blank(7.0, min(rows + 1.5, _LARGEST))
    place = np.arange(len(own))
    axes.barh(place, own["norm"], color=[colours.of(task) for task in own["task"]], height=0.75)
    bars = np.vstack([own["norm"] - own["ci_low"], own["ci_high"] - own["norm"]]).clip(min=0)
    axes.errorbar(own["norm"], place, xerr=bars, fmt="none", ecolor="0.2", elinewidth=0.8)
    size = _row_size(len(own), rows)
    axes.set_yticks(place, own["task"], fontsize=size)
    for y, end, norm in zip(place, own["ci_high"].fillna(own["norm"]), own["norm"], strict=True):
        note = axes.annotate(number(norm), (end, y), (3, 0), textcoords="offset points", va="center")
        note.set(fontsize=size, color="0.3")
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(own) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set(xlabel="norm of the embedding, nats / weight²", title="Difficulty")
    colours.legend(figure)
    return figure


def axis_name(distance: str) -> str:
    """Return the name of a distance with its unit."""
    name = f"{distance.replace('_', ' ')} distance"
    return f"{name}, {UNITS[distance]}" if distance in UNITS else name


def _map_title(method: str, distance: str, own: pd.DataFrame) -> str:
    name = distance.replace("_", " ")
    if method == "tsne":
        return f"t-SNE of the {name} distance"
    return f"Classical scaling of the {name} distance; the axes have {own['share'].iloc[0]:.0%} of the variance"


def _beside(width: float, height: float, cells: float) -> tuple[Figure, tuple[Axes, Axes]]:
    """Return a figure with narrow axes for a dendrogram to the left of square ones."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, width_ratios=[max(1.2, cells / 6), cells])
    return figure, (left, right)


def _label_size(names: Sequence[str]) -> float:
    return 8.0 if len(names) <= 60 else 7.0


def _row_size(count: int, inches: float) -> float:
    """Return the size of letters, in points, with which so many rows fit into so many inches."""
    return min(8.0, 0.75 * 72 * min(inches, _LARGEST) / count)


def _colour_labels(labels: Sequence[Text], colours: StreamColours) -> None:
    if len(colours.names) > 1:
        for label in labels:
            label.set_color(colours.of(label.get_text()))
