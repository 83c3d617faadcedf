"""Tables of tasks, their distances, retrieval, maps and orders."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from mas.experiments.embedding_file import EmbeddedTask, embeddings_as_npz
from mas.experiments.kinds.task_map.config import TaskMap
from mas.experiments.kinds.task_map.geometry import Matrix, classical_scaling, complete_part, symmetric, t_sne
from mas.experiments.record import CellRecord, finished
from mas.experiments.report.sections import Score
from mas.experiments.results import Results
from mas.experiments.statistics import mean_and_interval
from mas.task2vec import DISTANCES, complexity, distance_matrix

Numbers = npt.NDArray[Any]  # whole numbers, or true and false

TASK_COLUMNS = [
    *("task", "stream", "seed", "samples", "classes"),
    *("norm", "complexity", "head_loss", "head_accuracy"),
]
PROBE_COLUMNS = ["probe", "filters", "accuracy"]
DIFFICULTY_COLUMNS = ["task", "stream", "norm", "ci_low", "ci_high", "n", "complexity", "head_accuracy"]
DISTANCE_COLUMNS = ["from", "to", "distance", "mean", "n"]
RETRIEVAL_COLUMNS = ["distance", "share", "ci_low", "ci_high", "n", "chance"]
MAP_COLUMNS = ["method", "task", "x", "y", "share"]
ORDER_COLUMNS = ["order", "position", "task", "value"]
COLUMNS = {
    "tasks": TASK_COLUMNS,
    "probe": PROBE_COLUMNS,
    "distances": DISTANCE_COLUMNS,
    "map": MAP_COLUMNS,
    "orders": ORDER_COLUMNS,
}
"""Of the tables that every run has."""


def tables(config: TaskMap, results: Results) -> dict[str, pd.DataFrame]:
    """Return every table of a run; without a row if every cell diverged."""
    embedded = embedded_tasks(results.records)
    if not embedded:
        return {name: pd.DataFrame(columns=columns) for name, columns in COLUMNS.items()}
    matrices = {name: distance_matrix([one.embedding for one in embedded], name).numpy() for name in DISTANCES}
    tasks = tasks_table(embedded)
    distances = distances_table(embedded, matrices)
    made = {
        "tasks": tasks,
        "probe": probe_table(results.records),
        "distances": distances,
        "map": map_table(square(distances, config.distance)),
        "orders": orders_table(tasks, square(distances, config.distance)),
    }
    if tasks["seed"].nunique() > 1:
        made["retrieval"] = retrieval_table(embedded, matrices)
    return made


def score(tables: Mapping[str, pd.DataFrame]) -> Score | None:
    """Return, for each distance, the share of tasks that are found again."""
    if "retrieval" not in tables:
        return None
    return Score.of("found again, %", tables["retrieval"], ["distance", "share", "ci_low", "ci_high"], 100)


def files(config: TaskMap, results: Results) -> dict[str, bytes]:
    """Return the embeddings as one ``.npz`` file."""
    return {"embeddings.npz": embeddings_as_npz(embedded_tasks(results.records))}


def embedded_tasks(records: Sequence[CellRecord]) -> list[EmbeddedTask]:
    """Return every embedding of finished cells, seed by seed; a task has the same unique name for each seed."""
    names = _unique_names(records)
    found = []
    for record in sorted(finished(records), key=lambda record: record.seed):  # stable: streams keep their order
        for name, own in zip(names[record.label], record.outcome.embeddings, strict=True):
            found.append(EmbeddedTask(name, record.label, record.seed, own.embedding()))
    return found


def tasks_table(embedded: Sequence[EmbeddedTask]) -> pd.DataFrame:
    """Return a row per (task, seed): columns `TASK_COLUMNS`.

    ``norm`` is the task's difficulty, in nats per squared unit of weight, and ``complexity`` its cosine distance
    from the trivial task.
    """
    rows = []
    for one in embedded:
        own = one.embedding
        head = own.norm, complexity(own), own.head_loss, own.head_accuracy
        rows.append((one.task, one.stream, one.seed, own.samples, own.classes, *head))
    return pd.DataFrame(rows, columns=TASK_COLUMNS)


def probe_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return a row per probe network, of which there is one: columns `PROBE_COLUMNS`.

    ``accuracy`` is that on the test data of what it was trained on, NaN for a network that was not trained here.
    """
    found = {}
    for record in finished(records):
        accuracy = record.outcome.probe_accuracy
        for own in record.outcome.embeddings:
            found[own.probe] = own.probe, len(own.vector), np.nan if accuracy is None else accuracy
    return pd.DataFrame(list(found.values()), columns=PROBE_COLUMNS)


def difficulty(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return the mean norm of each task with its interval over seeds, the hardest first.

    Columns `DIFFICULTY_COLUMNS`; those behind ``n``, the number of seeds, are means.
    """
    rows = []
    for (task, stream), own in tasks.groupby(["task", "stream"], sort=False):
        norm = mean_and_interval(own["norm"])
        rows.append((task, stream, *norm, own["complexity"].mean(), own["head_accuracy"].mean()))
    table = pd.DataFrame(rows, columns=DIFFICULTY_COLUMNS)
    return table.sort_values("norm", ascending=False, kind="stable", ignore_index=True)


def distances_table(embedded: Sequence[EmbeddedTask], matrices: Mapping[str, Matrix]) -> pd.DataFrame:
    """Return the distance from each task to each, also itself, by each distance: columns `DISTANCE_COLUMNS`.

    Args:
        embedded: the embeddings.
        matrices: by the name of the distance, the distances from each embedding to each.

    Returns:
        A row per (distance, from, to): the mean over the ``n`` seeds that embedded both tasks, NaN for none.
    """
    names = list(dict.fromkeys(one.task for one in embedded))
    start, end = np.repeat(names, len(names)), np.tile(names, len(names))
    parts = []
    for distance, matrix in matrices.items():
        mean, n = _over_seeds(embedded, matrix)
        columns = {"from": start, "to": end, "distance": distance, "mean": mean.ravel(), "n": n.ravel()}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)[DISTANCE_COLUMNS]


def square(distances: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the mean distances of one name as a matrix, from the task of the row to that of the column."""
    own = distances[distances["distance"] == name]
    names = list(dict.fromkeys(own["from"]))
    return pd.DataFrame(own["mean"].to_numpy().reshape(len(names), len(names)), names, names)


def retrieval_table(embedded: Sequence[EmbeddedTask], matrices: Mapping[str, Matrix]) -> pd.DataFrame:
    """Return how often the nearest embedding of another seed is one of the same task: columns `RETRIEVAL_COLUMNS`.

    A row per distance: the share of the ``n`` embeddings with its 95 % interval (Wilson), and what chance would give.
    """
    rows = []
    for name, matrix in matrices.items():
        hits, chances = _retrieved(embedded, matrix)
        if len(hits):
            interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
            rows.append((name, hits.mean(), interval.low, interval.high, len(hits), chances.mean()))
    return pd.DataFrame(rows, columns=RETRIEVAL_COLUMNS)


def map_table(distances: pd.DataFrame) -> pd.DataFrame:
    """Return the tasks in the plane, by classical scaling and, of five tasks or more, by t-SNE: columns `MAP_COLUMNS`.

    ``share`` is the share of variance that the two axes of classical scaling have, see `classical_scaling`.
    """
    own = complete_part(distances)
    names, matrix = list(own.index), symmetric(own.to_numpy())
    points, share = classical_scaling(matrix)
    rows = [("scaling", name, *point, share) for name, point in zip(names, points, strict=True)]
    if len(names) >= FEWEST_FOR_T_SNE:
        rows += [("tsne", name, *point, np.nan) for name, point in zip(names, t_sne(matrix), strict=True)]
    return pd.DataFrame(rows, columns=MAP_COLUMNS)


FEWEST_FOR_T_SNE = 5


def orders_table(tasks: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Return orders of the tasks: columns `ORDER_COLUMNS`.

    ``curriculum``: by complexity, the least first. ``least_typical``: by the mean distance to the other tasks,
    there and back, the greatest first. ``value`` is what they are ordered by, the mean over seeds.
    """
    by_complexity = tasks.groupby("task", sort=False)["complexity"].mean()
    both_ways = (distances.to_numpy() + distances.to_numpy().T) / 2
    np.fill_diagonal(both_ways, 0)
    apart = pd.Series(both_ways.sum(axis=1) / max(len(both_ways) - 1, 1), distances.index)
    orders = {
        "curriculum": by_complexity.sort_values(kind="stable"),
        "least_typical": apart.sort_values(ascending=False, kind="stable"),
    }
    rows = [
        (order, position, task, value)
        for order, values in orders.items()
        for position, (task, value) in enumerate(values.items())
    ]
    return pd.DataFrame(rows, columns=ORDER_COLUMNS)


def _unique_names(records: Sequence[CellRecord]) -> dict[str, list[str]]:
    """Return the names of the tasks by stream: with the stream's title where two streams have one name."""
    names = {record.label: [own.task for own in record.outcome.embeddings] for record in finished(records)}
    streams = Counter(task for own in names.values() for task in own)
    unique = {}
    for label, own in names.items():
        unique[label] = [f"{label}: {task}" if streams[task] > 1 else task for task in own]
    return unique


def _over_seeds(embedded: Sequence[EmbeddedTask], matrix: Matrix) -> tuple[Matrix, Numbers]:
    """Return the mean of each distance within the seeds, shape (tasks, tasks), and the number of seeds behind it."""
    tasks, count = _numbers([one.task for one in embedded])
    seeds = np.array([one.seed for one in embedded])
    total = np.zeros((count, count))
    n = np.zeros((count, count), dtype=np.int64)
    for seed in np.unique(seeds):
        rows = np.flatnonzero(seeds == seed)
        place = np.ix_(tasks[rows], tasks[rows])
        total[place] += matrix[np.ix_(rows, rows)]
        n[place] += 1
    mean = np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)
    return mean, n


def _retrieved(embedded: Sequence[EmbeddedTask], matrix: Matrix) -> tuple[Numbers, Matrix]:
    """Return, of each embedding whose task another seed embedded too, whether it was found, and the odds by chance."""
    tasks, _ = _numbers([one.task for one in embedded])
    seeds = np.array([one.seed for one in embedded])
    candidate = seeds[:, None] != seeds
    same_task = candidate & (tasks[:, None] == tasks)
    nearest = np.where(candidate & ~np.isnan(matrix), matrix, np.inf).argmin(axis=1)
    asked = same_task.any(axis=1)
    hits = same_task[np.arange(len(tasks)), nearest]
    return hits[asked], same_task[asked].sum(axis=1) / candidate[asked].sum(axis=1)


def _numbers(names: Sequence[str]) -> tuple[Numbers, int]:
    """Return names as numbers from 0, in the order in which they come first, and how many there are."""
    numbers, unique = pd.factorize(np.array(names, dtype=object))
    return numbers, len(unique)
