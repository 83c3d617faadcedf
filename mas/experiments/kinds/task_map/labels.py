"""Put labels beside points so that they overlap as little as possible."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from mas.experiments.report.drawing import Colour

Matrix = npt.NDArray[np.float64]

_DIRECTIONS = 12
_RADII = (5.0, 11.0, 18.0, 27.0, 38.0, 52.0, 70.0)  # from the point to the label, in points of 1/72 inch
_NEAR = 11.0  # labels farther away are joined to their points by a line
_POINT = 3.0  # half the side of the box of a point
_LETTER = 0.58  # mean width of a letter as a share of its size


def place_labels(axes: Axes, points: Matrix, labels: Sequence[str], colours: Sequence[Colour], *, size: float) -> None:
    """Write a label beside each point, at the nearest free place; where none is free, at that with least overlap.

    The axes must have their final limits: positions are those of the figure as it is laid out now.

    Args:
        axes: with the points drawn.
        points: in data coordinates, shape (n, 2).
        labels: of the points.
        colours: of the labels.
        size: of the letters, in points of 1/72 inch.
    """
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    per_pixel = 72 / axes.figure.dpi
    own: Matrix = axes.transData.transform(points) * per_pixel
    frame = np.asarray(axes.get_window_extent().extents) * per_pixel
    taken = np.hstack([own - _POINT, own + _POINT])
    for number, label in enumerate(labels):
        extent = np.array([_LETTER * size * len(label), 1.15 * size])
        offsets, boxes = _candidates(own[number], extent)
        cost = _overlap(boxes, np.delete(taken, number, axis=0)) + _outside(boxes, frame)
        best = int(cost.argmin())  # of equals the first: the nearest
        taken = np.vstack([taken, boxes[best]])
        far = np.linalg.norm(offsets[best]) > _NEAR
        note = axes.annotate(
            label,
            _pair(points[number]),
            _pair(boxes[best, :2] - own[number]),
            textcoords="offset points",
            fontsize=size,
            color=colours[number],
            verticalalignment="bottom",
            zorder=4,
        )
        note.set_in_layout(False)
        if far:
            _join(axes, points[number], offsets[best], colours[number])


def _join(axes: Axes, point: Matrix, offset: Matrix, colour: Colour) -> None:
    arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0}
    line = axes.annotate("", _pair(point), _pair(offset), textcoords="offset points", arrowprops=arrow)
    line.set_in_layout(False)


def _pair(point: Matrix) -> tuple[float, float]:
    x, y = point.tolist()
    return x, y


def _candidates(point: Matrix, extent: Matrix) -> tuple[Matrix, Matrix]:
    """Return places for a label, nearest first: where its side that faces the point is, and its box.

    Returns:
        Offsets from the point, shape (places, 2), and boxes (left, bottom, right, top), shape (places, 4).
    """
    angles = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    unit = np.column_stack([np.cos(angles), np.sin(angles)])
    offsets = np.concatenate([radius * unit for radius in _RADII])
    towards = np.tile(unit, (len(_RADII), 1))
    centres = point + offsets + towards * extent / 2
    return offsets, np.hstack([centres - extent / 2, centres + extent / 2])


def _overlap(boxes: Matrix, others: Matrix) -> Matrix:
    """Return the area that each box shares with others, shape (boxes,)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared: Matrix = (high - low).clip(min=0).prod(axis=2).sum(axis=1)
    return shared


def _outside(boxes: Matrix, frame: Matrix) -> Matrix:
    """Return how far each box reaches out of a frame, weighted so that any overlap is better, shape (boxes,)."""
    beyond = np.hstack([frame[:2] - boxes[:, :2], boxes[:, 2:] - frame[2:]])
    reach: Matrix = 1000 * beyond.clip(min=0).sum(axis=1)
    return reach
