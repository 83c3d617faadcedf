"""Who forgets what: every score is derived from one accuracy matrix.

``R[t, i]`` is the accuracy on experience i after training through experience t, both from 0;
``untrained[i]`` that of the network before any training. NaN stands for "not measured": joint
training has only its last row. A score that needs what was not measured is NaN.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def forgetting_scores(
    accuracy: npt.ArrayLike, untrained: npt.ArrayLike | None = None, reference: npt.ArrayLike | None = None
) -> dict[str, float]:
    """Derive all scores from an accuracy matrix.

    Args:
        accuracy: R, shape (T, T), values from 0 to 1 or NaN.
        untrained: accuracy before training, shape (T,); without it FWT is NaN.
        reference: a*, accuracy on each experience of a network that was trained on all data up to
            it, or on all data, shape (T,); without it intransigence is NaN.

    Returns:
        Score by name, in the unit of R: ``ACC`` mean_i R[T,i]; ``forgetting`` mean over i < T of
        max_{t<T} R[t,i] − R[T,i]; ``BWT`` mean over i < T of R[T,i] − R[i,i]; ``FWT`` mean over
        i > 1 of R[i−1,i] − untrained[i]; ``learning`` (learning accuracy) mean_i R[i,i];
        ``intransigence`` mean_i a*[i] − R[i,i].

    Raises:
        ValueError: R is not square, or the shapes disagree.

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
    return {name: float(score(matrix, before, best)) for name, score in _SCORES.items()}


def _acc(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    return float(matrix[-1].mean())


def _forgetting(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    if len(matrix) == 1:
        return np.nan
    return float((matrix[:-1, :-1].max(axis=0) - matrix[-1, :-1]).mean())


def _bwt(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    return (matrix[-1] - matrix.diagonal())[:-1].mean() if len(matrix) > 1 else np.nan


def _fwt(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    return (matrix.diagonal(1) - untrained[1:]).mean() if len(matrix) > 1 else np.nan


def _learning(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    return float(matrix.diagonal().mean())


def _intransigence(matrix: Matrix, untrained: Matrix, reference: Matrix) -> float:
    return float((reference - matrix.diagonal()).mean())


def _vector(name: str, values: npt.ArrayLike | None, size: int) -> Matrix:
    """Give one number per experience; NaN where none are given."""
    vector = np.full(size, np.nan) if values is None else np.asarray(values, dtype=np.float64)
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
