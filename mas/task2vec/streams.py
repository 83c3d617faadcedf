"""Scores and orders of a stream of tasks, from their embeddings."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from mas.task2vec.distances import cosine_distance, distance_matrix
from mas.task2vec.embedding import TaskEmbedding


def complexity(embedding: TaskEmbedding) -> float:
    """Return d_sym(e, t₀), from 0 to 1: how far a task is from the trivial one.

    It is 0 for F = 0, and grows while more filters have an F above the prior's β/λ². A cosine compares
    directions: it is 0 also where F is the same multiple of β/λ² in every filter, and levels off where F is far
    above β/λ² in all of them.

    Source: Achille et al. 2019, Task2Vec (ICCV).
    """
    return cosine_distance(embedding, embedding.trivial())


def stream_complexity(embeddings: Sequence[TaskEmbedding]) -> float:
    """Return Σ_t d_sym(e_t, t₀): the total complexity of a stream, t₀ the trivial task.

    Source: Nguyen et al. 2019 (arXiv 1908.01091).
    """
    return sum(complexity(e) for e in embeddings)


def stream_heterogeneity(embeddings: Sequence[TaskEmbedding]) -> float:
    """Return Σ_t d_sym(e_t, e_{t+1}): how much the tasks of a stream differ from one to the next.

    Source: Nguyen et al. 2019 (arXiv 1908.01091).
    """
    return sum(cosine_distance(a, b) for a, b in pairwise(embeddings))


def curriculum_order(embeddings: Sequence[TaskEmbedding]) -> list[int]:
    """Return the positions of the tasks by complexity, the least complex first; equal ones keep their order."""
    complexities = [complexity(e) for e in embeddings]
    return sorted(range(len(complexities)), key=complexities.__getitem__)


def least_typical_order(embeddings: Sequence[TaskEmbedding], *, distance: str = "cosine") -> list[int]:
    """Return the positions of the tasks by their mean distance to the others, the greatest first.

    Args:
        embeddings: of the tasks.
        distance: a name in `mas.task2vec.DISTANCES`; one with a direction is taken both ways.

    Raises:
        ValueError: as `distance_matrix`.
    """
    matrix = distance_matrix(embeddings, distance).reshape(len(embeddings), len(embeddings))
    mean_distances = _off_diagonal_means(matrix + matrix.T)
    return mean_distances.argsort(descending=True, stable=True).tolist()


def _off_diagonal_means(matrix: Tensor) -> Tensor:
    """Return the mean of each row without its entry on the diagonal, shape (tasks,)."""
    others = max(len(matrix) - 1, 1)
    return (matrix - matrix.diag().diag()).sum(1) / others
