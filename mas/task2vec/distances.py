"""Distances between tasks, from their embeddings.

All of them compare the precisions h = F + β/λ² of the posteriors of the probe's weights, see `TaskEmbedding`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mas.task2vec.embedding import TaskEmbedding

Distance = Callable[[TaskEmbedding, TaskEmbedding], float]

ALPHA = 0.15
"""Weight of the trivial task in `asymmetric_distance` (Achille et al. 2019)."""

_TINY = torch.finfo(torch.float64).tiny


def cosine_distance(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return d_sym: the cosine distance of h_a / (h_a + h_b) and h_b / (h_a + h_b), from 0 to 1.

    The paper's formula has F in the place of h = F + β/λ². Its ratio F_a / (F_a + F_b) is noise where neither
    task uses a filter; with h it is ½ there. As β → 0 this is the paper's formula, with ½ for a filter of F = 0
    in both tasks. Filters of h = 0 in both are left out.

    Raises:
        ValueError: the embeddings cannot be compared: another probe, or another β.

    Source: Achille et al. 2019, Task2Vec (ICCV), sec. 4.

    >>> a, b = (TaskEmbedding(torch.tensor([f, 1.0]), torch.tensor([0.5, 0.5]), "probe") for f in (1.0, 3.0))
    >>> round(cosine_distance(a, b), 4)
    0.0829
    """
    x, y = _precisions(a, b)
    total = (x + y).clamp_min(_TINY)
    return _cosine(x / total, y / total)


def asymmetric_distance(a: TaskEmbedding, b: TaskEmbedding, *, alpha: float = ALPHA) -> float:
    """Return d_asym(a → b) = d_sym(a, b) − α d_sym(a, t₀), t₀ the trivial task: how far it is from a to b.

    A complex task a makes a good start, so that its distance from the trivial task is subtracted. From a
    task to itself the distance is −α d_sym(a, t₀).

    Raises:
        ValueError: as `cosine_distance`.

    Source: Achille et al. 2019, Task2Vec (ICCV), sec. 4.
    """
    return cosine_distance(a, b) - alpha * cosine_distance(a, a.trivial())


def normalized_cosine_distance(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return the cosine distance of the posteriors' variances in units of the prior's, (β/λ²) / h, from 0 to 1.

    A filter that a task does not use has 1, so that the tasks are compared by what they leave free. Take a large β,
    near the λ²F of the filters that count: with a small one, all filters in use are near 0 and alike.

    Raises:
        ValueError: as `cosine_distance`.

    Source: the distance of this name in the code of Achille et al. (aws-cv-task2vec).
    """
    x, y = _precisions(a, b)
    return _cosine(a.scale / x, b.scale / y)


def kl_divergence(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return KL(N(w, β/h_a) ‖ N(w, β/h_b)) in nats, summed over filters, one weight each.

    Raises:
        ValueError: as `cosine_distance`.

    Source: ``asymmetric_kl`` in the code of Achille et al. (aws-cv-task2vec).
    """
    x, y = _precisions(a, b)
    return _divergence(y / x)


def jensen_shannon(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return ½ KL(p_a ‖ m) + ½ KL(p_b ‖ m) in nats, summed over filters, m the Gaussian with the mean variance.

    Raises:
        ValueError: as `cosine_distance`.

    Source: ``jsd`` in the code of Achille et al. (aws-cv-task2vec), which is the mean over filters.
    """
    x, y = _precisions(a, b)
    # with the variances 1/x, 1/y and their mean, the two divergences sum up to this
    return float(0.25 * ((x + y).square() / (4 * x * y)).log().sum())


def correlation_distance(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return 1 minus the Pearson correlation of the posteriors' variances 1/h over filters, from 0 to 2.

    As with `normalized_cosine_distance`, filters that a task does not use count most.

    Raises:
        ValueError: as `cosine_distance`.

    Source: the distance of this name in the code of Achille et al. (aws-cv-task2vec).
    """
    x, y = _precisions(a, b)
    x, y = 1 / x, 1 / y
    return _cosine(x - x.mean(), y - y.mean())


DISTANCES: dict[str, Distance] = {
    "cosine": cosine_distance,
    "asymmetric": asymmetric_distance,
    "normalized_cosine": normalized_cosine_distance,
    "kl": kl_divergence,
    "jensen_shannon": jensen_shannon,
    "correlation": correlation_distance,
}
"""Name -> distance of two embeddings; "asymmetric" and "kl" go from the first to the second."""


def find_distance(name: str) -> Distance:
    """Return the distance of a name; raise ValueError for an unknown one."""
    if name not in DISTANCES:
        raise ValueError(f"distance is {name!r}; known are {', '.join(map(repr, DISTANCES))}")
    return DISTANCES[name]


def distance_matrix(embeddings: Sequence[TaskEmbedding], distance: str = "cosine") -> Tensor:
    """Return the distances from each embedding (row) to each (column), shape (tasks, tasks), float64.

    Raises:
        ValueError: the distance is not known, or embeddings cannot be compared, see `cosine_distance`.
    """
    measure = find_distance(distance)
    rows = [[measure(a, b) for b in embeddings] for a in embeddings]
    return torch.tensor(rows, dtype=torch.float64)


def _precisions(a: TaskEmbedding, b: TaskEmbedding) -> tuple[Tensor, Tensor]:
    """Return the precisions of two embeddings that can be compared."""
    names = f"{a.task or 'the first'} and {b.task or 'the second'}"
    if a.probe != b.probe:
        raise ValueError(
            f"{names} are embeddings by different probes ({a.probe}, {b.probe}); embed both by one network"
        )
    if a.vector.shape != b.vector.shape:
        raise ValueError(f"{names} have {len(a.vector)} and {len(b.vector)} filters; embed both by one network")
    if a.beta != b.beta:
        raise ValueError(f"{names} are embeddings with beta {a.beta} and {b.beta}; embed both with one beta")
    return a.precision, b.precision


def _divergence(ratio: Tensor) -> float:
    """Return KL in nats between Gaussians of one mean, summed; ``ratio`` is the first variance ÷ the second."""
    return float(0.5 * (ratio - 1 - ratio.log()).sum())


def _cosine(x: Tensor, y: Tensor) -> float:
    """Return 1 − cos; 0 between equal vectors, also between zeros, and 1 if one alone is zero."""
    product = float(x.norm() * y.norm())
    if product == 0:
        return 0.0 if torch.equal(x, y) else 1.0
    return max(1 - float(x @ y) / product, 0.0)  # in this order, NaN stays NaN
