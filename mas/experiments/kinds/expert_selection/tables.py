"""Tables of experts: their errors, the distances of tasks, and the experts that distances select."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from mas.experiments.kinds.expert_selection.config import ExpertSelection
from mas.experiments.kinds.expert_selection.measured import Matrix, Measured, measured_by_seed
from mas.experiments.kinds.expert_selection.plan import GENERIC
from mas.experiments.report.sections import Score
from mas.experiments.results import Results
from mas.experiments.statistics import Mean, holm, mean_and_interval, paired_p
from mas.task2vec import DISTANCES, distance_matrix, selection_score

ERROR_COLUMNS = ["expert", "task", "seed", "error"]
DISTANCE_COLUMNS = ["distance", "expert", "task", "seed", "value"]
CHOICE_COLUMNS = [
    *("distance", "task", "seed", "expert", "error", "best_expert", "best", "chance", "generic"),
    *("excess", "chance_excess", "generic_excess", "found", "rank_correlation"),
]
_MEANS = ["error", "best", "chance", "generic", "found"]
_WITH_INTERVAL = ["excess", "chance_excess", "generic_excess", "rank_correlation"]
SELECTION_COLUMNS = [
    *("distance", "tasks", *_MEANS),
    *(column for name in _WITH_INTERVAL for column in (name, f"{name}_ci_low", f"{name}_ci_high")),
    *("p", "p_holm"),
]


def tables(config: ExpertSelection, results: Results) -> dict[str, pd.DataFrame]:
    """Return every table of a run."""
    measured = measured_by_seed(config, results)
    choices = choices_table(measured)
    return {
        "errors": errors_table(measured),
        "distances": distances_table(measured),
        "choices": choices,
        "selection": selection_table(choices),
    }


def score(tables: Mapping[str, pd.DataFrame]) -> Score:
    """Return the excess of the experts that each distance selects."""
    columns = ["distance", "excess", "excess_ci_low", "excess_ci_high"]
    return Score.of("excess over the best expert, %", tables["selection"], columns, 100)


def errors_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """Return a row per (expert, task, seed) that was measured: columns `ERROR_COLUMNS`.

    An expert is called as the task that it was trained on, which is among its tasks; the probe network
    itself as `GENERIC`.
    """
    rows = []
    for own in measured:
        by_expert = [(GENERIC, own.generic), *zip(own.tasks, own.errors, strict=False)]  # the first tasks have experts
        for expert, errors in by_expert:
            for task, error in zip(own.tasks, errors, strict=True):
                if not np.isnan(error):
                    rows.append((expert, task, own.seed, error))
    return pd.DataFrame(rows, columns=ERROR_COLUMNS)


def distances_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """Return a row per (distance, expert, task, seed): columns `DISTANCE_COLUMNS`."""
    rows = []
    for own in measured:
        for name in DISTANCES:
            for expert, values in zip(own.tasks, _distances(own, name), strict=False):
                pairs = zip(own.tasks, values, strict=True)
                rows += [(name, expert, task, own.seed, value) for task, value in pairs if task != expert]
    return pd.DataFrame(rows, columns=DISTANCE_COLUMNS)


def choices_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """Return a row per (distance, task, seed), the expert that is nearest to the task: columns `CHOICE_COLUMNS`.

    ``error`` is that of the selected expert, ``best`` the least of all experts, ``chance`` their mean, ``generic``
    that of the probe network; each ``excess`` is error / best − 1, NaN where the best error is 0. An expert
    is not counted on the task that it was trained on. Tasks with fewer than two experts are left out.
    """
    rows = []
    for own in measured:
        for name in DISTANCES:
            distances = _distances(own, name)
            if len(distances):
                rows += [row for t in range(len(own.tasks)) for row in _choice(own, name, distances, t)]
    return pd.DataFrame(rows, columns=CHOICE_COLUMNS)


def selection_table(choices: pd.DataFrame) -> pd.DataFrame:
    """Return a row per distance, means over tasks with 95 % intervals: columns `SELECTION_COLUMNS`.

    A task counts once, by its mean over seeds. ``p`` is that of the paired t-test of the selected experts'
    errors against chance, over tasks; ``p_holm`` is adjusted for the number of distances.
    """
    rows = []
    for name, own in choices.groupby("distance", sort=False):
        by_task = own.groupby("task", sort=False)[[*_MEANS, *_WITH_INTERVAL]].mean()
        means = [by_task[column].mean() for column in _MEANS]
        intervals: list[float] = []
        for column in _WITH_INTERVAL:
            found: Mean = mean_and_interval(by_task[column])
            intervals += [found.mean, found.ci_low, found.ci_high]
        p = paired_p(by_task["error"] - by_task["chance"])
        rows.append((name, len(by_task), *means, *intervals, p, np.nan))
    table = pd.DataFrame(rows, columns=SELECTION_COLUMNS)
    table["p_holm"] = holm(table["p"].astype(float))
    return table


def _distances(own: Measured, name: str) -> Matrix:
    """Return the distances from the experts' tasks to all tasks, shape (experts, T); (0, T) without embeddings."""
    if not own.embeddings:
        return np.empty((0, len(own.tasks)))
    every: Matrix = distance_matrix(own.embeddings, name).numpy()
    return every[: len(own.errors)]


def _choice(own: Measured, name: str, distances: Matrix, task: int) -> list[tuple[object, ...]]:
    """Return the row of a task, in a list; empty with fewer than two experts."""
    errors = own.transfer_errors()[:, task]
    candidates = np.flatnonzero(~np.isnan(errors))
    if len(candidates) < 2:
        return []
    errors = errors[candidates]
    to_task = distances[candidates, task]
    score = selection_score(torch.from_numpy(to_task)[:, None], torch.from_numpy(errors)[:, None])
    selected, best, chance = float(score.selected), float(score.best), float(score.chance)
    generic = float(own.generic[task])
    nearest = own.tasks[candidates[to_task.argmin()]]
    best_expert = own.tasks[candidates[errors.argmin()]]
    excesses = [error / best - 1 if best > 0 else np.nan for error in (selected, chance, generic)]
    found = float(selected == best)
    row = (name, own.tasks[task], own.seed, nearest, selected, best_expert, best, chance, generic)
    return [(*row, *excesses, found, float(score.rank_correlation))]
