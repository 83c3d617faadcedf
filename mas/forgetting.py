"""Continual-learning scores, all derived from one accuracy matrix.

``R[t, i]`` is the accuracy on experience i after training through experience t, both counted
from 0; ``untrained[i]`` is the accuracy before any training. NaN means "not measured": joint
training has only the last row. A score that depends on a missing value is NaN.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def forgetting_scores(
    accuracy: npt.ArrayLike,
    untrained: npt.ArrayLike | None = None,
    reference: npt.ArrayLike | None = None,
) -> dict[str, float]:
    """Return all scores of an accuracy matrix.

    Args:
        accuracy: R, shape (T, T), values from 0 to 1 or NaN.
        untrained: accuracy before training, shape (T,); without it FWT is NaN.
        reference: a*, accuracy on each experience of a network trained on all data up to it, or on
            all data, shape (T,); without it intransigence is NaN.

    Returns:
        Score by name, in the unit of R: ``ACC`` mean_i R[T,i]; ``forgetting`` mean over i < T of
        max_{t<T} R[t,i] − R[T,i]; ``BWT`` mean over i < T of R[T,i] − R[i,i]; ``FWT`` mean over
        i > 1 of R[i−1,i] − untrained[i]; ``learning`` (learning accuracy) mean_i R[i,i];
        ``intransigence`` mean_i a*[i] − R[i,i].

    Raises:
        ValueError: R is not square, or the shapes do not match.

    Source: Lopez-Paz & Ranzato 2017 (ACC, BWT, FWT); Chaudhry et al. 2018 (forgetting,
    intransigence); Riemer et al. 2019 (learning accuracy).

    >>> scores = forgetting_scores([[0.9, 0.5], [0.6, 0.8]])
    >>> round(scores["ACC"], 9), round(scores["forgetting"], 9)
    (0.7, 0.3)
    """
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise ValueError(
            f"accuracy has shape {matrix.shape}; "
            "give a square matrix, a row per experience trained and a column per experience tested"
        )
    before = _vector("untrained", untrained, len(matrix))
    best = _vector("reference", reference, len(matrix))
    scores = {}
    for name, score in _SCORES.items():
        scores[name] = float(score(matrix, before, best))
    return scores


def _acc(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    return float(matrix[-1].mean())


def _forgetting(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    if len(matrix) == 1:
        return np.nan
    best_before = matrix[:-1, :-1].max(axis=0)
    at_end = matrix[-1, :-1]
    return float((best_before - at_end).mean())


def _bwt(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    if len(matrix) == 1:
        return np.nan
    change = matrix[-1] - matrix.diagonal()
    return float(change[:-1].mean())


def _fwt(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    if len(matrix) == 1:
        return np.nan
    before_training_on = matrix.diagonal(1)
    return float((before_training_on - untrained[1:]).mean())


def _learning(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    return float(matrix.diagonal().mean())


def _intransigence(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    return float((reference - matrix.diagonal()).mean())


def _vector(name: str, values: npt.ArrayLike | None, size: int) -> Matrix:
    """Return one number per experience; NaN if ``values`` is None.

    Raises:
        ValueError: their number is not ``size``.
    """
    if values is None:
        return np.full(size, np.nan)
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"{name} has shape {vector.shape}; the matrix needs ({size},)")
    return vector


_SCORES: dict[str, Callable[[Matrix, Matrix, Matrix], float]] = {
    "ACC": _acc,
    "forgetting": _forgetting,
    "BWT": _bwt,
    "FWT": _fwt,
    "learning": _learning,
    "intransigence": _intransigence,
}
