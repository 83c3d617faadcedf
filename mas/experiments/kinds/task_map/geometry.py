"""From distances between tasks to points in a plane and to a tree."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from sklearn.manifold import TSNE

Matrix = npt.NDArray[np.float64]


def classical_scaling(distances: Matrix, axes: int = 2) -> tuple[Matrix, float]:
    """Return points whose Euclidean distances come near to the given ones, and the share of variance of their axes.

    Args:
        distances: symmetric, zero on the diagonal, shape (n, n).
        axes: of the points.

    Returns:
        The points, shape (n, axes), centred, along the principal axes, and the sum of their eigenvalues over the
        sum of the absolute values of all: distances that are not Euclidean have negative ones.

    Source: Torgerson 1952; Mardia, Kent and Bibby 1979, Multivariate Analysis, sec. 14.2 and 14.4.
    """
    n = len(distances)
    centring = np.eye(n) - 1 / n
    eigenvalues, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    largest_first = eigenvalues.argsort()[::-1][:axes]
    kept = eigenvalues[largest_first].clip(min=0)
    points = np.zeros((n, axes))
    points[:, : len(kept)] = _with_fixed_signs(vectors[:, largest_first]) * np.sqrt(kept)
    total = np.abs(eigenvalues).sum()
    return points, float(kept.sum() / total) if total else 1.0


def t_sne(distances: Matrix) -> Matrix:
    """Return the points of t-SNE, shape (n, 2), the same for the same distances.

    Args:
        distances: symmetric, not negative, zero on the diagonal, shape (n, n), n at least 5.

    Source: van der Maaten and Hinton 2008.
    """
    perplexity = min(30.0, (len(distances) - 1) / 3)
    scaled = distances / max(distances.max(), np.finfo(np.float64).tiny)
    maker = TSNE(metric="precomputed", init="random", perplexity=perplexity, random_state=0)
    return np.asarray(maker.fit_transform(scaled), dtype=np.float64)


def tree(distances: Matrix) -> Matrix:
    """Return the average-linkage clustering of tasks, as SciPy's dendrogram takes it, leaves in their best order."""
    return np.asarray(linkage(squareform(distances, checks=False), "average", optimal_ordering=True))


def symmetric(distances: Matrix) -> Matrix:
    """Return the mean of both directions, with zeros on the diagonal; where one is negative, all others are raised."""
    mean = (distances + distances.T) / 2
    apart = ~np.eye(len(mean), dtype=bool)
    if apart.any():
        mean[apart] -= min(0.0, mean[apart].min())
    np.fill_diagonal(mean, 0)
    return mean


def complete_part(distances: pd.DataFrame) -> pd.DataFrame:
    """Return the distances of the tasks that remain when those with most unknown ones are left out, one by one."""
    while distances.isna().any(axis=None):
        worst = distances.isna().sum(axis=1).idxmax()
        distances = distances.drop(index=worst, columns=worst)
    return distances


def _with_fixed_signs(vectors: Matrix) -> Matrix:
    """Return columns whose largest entry is positive: eigenvectors have no sign of their own."""
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return vectors * signs
