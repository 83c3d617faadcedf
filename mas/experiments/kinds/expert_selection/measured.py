"""The errors of experts and the embeddings of tasks of one seed, from the records of its cells."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mas.experiments.kinds.expert_selection.config import ExpertSelection
from mas.experiments.kinds.expert_selection.plan import EMBEDDING, GENERIC, expert_label
from mas.experiments.record import CellRecord, finished
from mas.experiments.results import Results
from mas.task2vec import TaskEmbedding

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What one seed came to, as far as its cells are finished; cells that diverged are as if they were missing.

    Attributes:
        seed: of the cells.
        tasks: names of the T tasks.
        errors: of each expert after its adaptation to each task, from 0 to 1, shape (experts, T). NaN:
            not measured. Expert i was trained on task i.
        generic: those of the probe network itself, shape (T,).
        embeddings: of the T tasks; empty if they are missing.
    """

    seed: int
    tasks: list[str]
    errors: Matrix
    generic: Matrix
    embeddings: list[TaskEmbedding]

    def transfer_errors(self) -> Matrix:
        """Return the errors on tasks that are new to an expert: NaN for the task that it was trained on."""
        errors = self.errors.copy()
        np.fill_diagonal(errors, np.nan)
        return errors


def measured_by_seed(config: ExpertSelection, results: Results) -> list[Measured]:
    """Return what each seed came to, in the config's order; seeds without an error are left out."""
    by_seed: dict[int, dict[str, CellRecord]] = {}
    for record in finished(results.records):
        by_seed.setdefault(record.seed, {})[record.label] = record
    names = _task_names(by_seed)
    experts = [expert_label(number) for number in range(config.experts)]
    found = []
    for seed in config.seed_list():
        own = by_seed.get(seed, {})
        rows = {label: 1 - record.outcome.matrix()[0] for label, record in own.items() if record.outcome.accuracy}
        if rows:
            size = len(next(iter(rows.values())))
            missing = np.full(size, np.nan)
            errors = np.array([rows.get(label, missing) for label in experts])
            tasks = names or [f"experience {number}" for number in range(size)]
            found.append(Measured(seed, tasks, errors, rows.get(GENERIC, missing), _embeddings(own)))
    return found


def _task_names(by_seed: Mapping[int, Mapping[str, CellRecord]]) -> list[str]:
    """Return the names of the tasks, the same for all seeds; empty if no cell that embeds is finished."""
    for own in by_seed.values():
        if EMBEDDING in own:
            return [embedding.task for embedding in own[EMBEDDING].outcome.embeddings]
    return []


def _embeddings(own: Mapping[str, CellRecord]) -> list[TaskEmbedding]:
    if EMBEDDING not in own:
        return []
    return [record.embedding() for record in own[EMBEDDING].outcome.embeddings]
