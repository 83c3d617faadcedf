"""Selection: which of several experts to start a new task from, by distance; compared with the best and with chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mas.task2vec.distances import find_distance
from mas.task2vec.embedding import TaskEmbedding


def rank_experts(experts: Sequence[TaskEmbedding], task: TaskEmbedding, *, distance: str = "asymmetric") -> list[int]:
    """Return the positions of the experts by their distance to a task, the nearest first.

    Args:
        experts: embeddings of the tasks that the experts were trained on.
        task: embedding of the new task.
        distance: a name in `mas.task2vec.DISTANCES`, taken from the expert to the task.

    Raises:
        ValueError: the distance is not known, or embeddings are of different probes.

    Source: Achille et al. 2019, Task2Vec (ICCV), sec. 5.
    """
    measure = find_distance(distance)
    distances = [measure(expert, task) for expert in experts]
    return sorted(range(len(distances)), key=distances.__getitem__)


@dataclass(frozen=True, eq=False)
class SelectionScore:
    """How well distances select experts; every tensor has shape (tasks,), float64.

    Attributes:
        selected: error of the expert at the least distance.
        best: the least error of all experts, found by trying each (brute force).
        chance: the mean error over experts, that of a random one.
        rank_correlation: Spearman's, between distances and errors over experts; NaN for fewer than
            two experts, or where either does not vary.
    """

    selected: Tensor
    best: Tensor
    chance: Tensor
    rank_correlation: Tensor

    @property
    def selected_excess(self) -> float:
        """Mean over tasks of (selected − best) / best; tasks whose best error is 0 are left out, NaN if all are."""
        return self._mean_excess(self.selected)

    @property
    def chance_excess(self) -> float:
        """The same for chance. Achille et al. report 0.10 (asymmetric distance) and 0.595 (chance)."""
        return self._mean_excess(self.chance)

    def _mean_excess(self, errors: Tensor) -> float:
        counted = self.best > 0
        relative = errors[counted] / self.best[counted] - 1
        return float(relative.mean())


def selection_score(distances: Tensor, errors: Tensor) -> SelectionScore:
    """Return how well distances select experts, against brute force and chance.

    Args:
        distances: from each expert (row) to each task (column), shape (experts, tasks).
        errors: of each expert after it was adapted to each task, of the same shape, from 0 up. A pair with
            NaN in either is left out, such as an expert and the task it was trained on.

    Raises:
        ValueError: the shapes differ, or a task has no pair.

    Source: Achille et al. 2019, Task2Vec (ICCV), sec. 5, table 1.

    >>> score = selection_score(torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([[0.12], [0.10], [0.30]]))
    >>> print(f"{score.selected_excess:.2f} {score.chance_excess:.2f} {score.rank_correlation.item():.2f}")
    0.20 0.73 0.50
    """
    if distances.shape != errors.shape or distances.ndim != 2:
        raise ValueError(
            f"distances have shape {tuple(distances.shape)}, errors {tuple(errors.shape)}; give both (experts, tasks)"
        )
    columns = []
    for task, (own_distances, own_errors) in enumerate(zip(distances.double().T, errors.double().T, strict=True)):
        kept = ~(own_distances.isnan() | own_errors.isnan())
        if not kept.any():
            raise ValueError(f"task {task} has no expert with a distance and an error; leave the task out")
        columns.append(_score_task(own_distances[kept], own_errors[kept]))
    selected, best, chance, correlation = torch.tensor(columns, dtype=torch.float64).reshape(-1, 4).T
    return SelectionScore(selected, best, chance, correlation)


def _score_task(distances: Tensor, errors: Tensor) -> tuple[float, float, float, float]:
    selected = errors[distances.argmin()]
    return float(selected), float(errors.min()), float(errors.mean()), _rank_correlation(distances, errors)


def _rank_correlation(x: Tensor, y: Tensor) -> float:
    from scipy.stats import spearmanr  # here, for its import takes longer than all of mas.task2vec

    if (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    return float(spearmanr(x.numpy(), y.numpy()).statistic)
