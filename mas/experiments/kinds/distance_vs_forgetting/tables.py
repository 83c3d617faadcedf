"""Tables: scores of tasks beside what is forgotten, and their rank correlations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mas.experiments.kinds.distance_vs_forgetting.config import EMBEDDINGS, FROM_SCRATCH, NAIVE, DistanceVsForgetting
from mas.experiments.record import CellRecord, finished
from mas.experiments.results import Results
from mas.experiments.scores import scores_table, summary_table
from mas.experiments.statistics import holm, rank_correlation, rank_correlation_difference
from mas.experiments.tables import results_table
from mas.task2vec import TaskEmbedding, distance_matrix

DIRECTED = ("asymmetric", "kl")  # distances that differ there and back
STREAM_OUTCOMES = ("forgetting", "ACC")
STEP_OUTCOMES = ("drop", "transfer")
CORRELATION_COLUMNS = [
    "level",
    "strategy",
    "score",
    "outcome",
    "rho",
    "ci_low",
    "ci_high",
    "n",
    "p",
    "difference",
    "difference_ci_low",
    "difference_ci_high",
    "difference_p",
    "p_holm",
    "difference_p_holm",
]


@dataclass(frozen=True)
class StreamTasks:
    """The tasks of one stream, and the distances between them."""

    embeddings: list[TaskEmbedding]
    distances: dict[str, np.ndarray]  # by name, from each task (row) to each; the trivial task is the last

    @classmethod
    def of(cls, embeddings: list[TaskEmbedding], names: Sequence[str]) -> "StreamTasks":
        """Return the tasks of a stream, with the distances of these names."""
        with_trivial = [*embeddings, embeddings[0].trivial()]
        found = {name: distance_matrix(with_trivial, name).numpy() for name in names}
        return cls(embeddings, found)

    def stream_scores(self) -> dict[str, float]:
        """Return the scores of the whole stream."""
        scores = {}
        for name, matrix in self.distances.items():
            tasks = matrix[:-1, :-1]
            scores[f"complexity_{name}"] = float(matrix[:-1, -1].sum())
            scores[f"heterogeneity_{name}"] = float(tasks.diagonal(1).sum())
        scores["mean_norm"] = float(np.mean([embedding.norm for embedding in self.embeddings]))
        return scores

    def step_scores(self, earlier: int, learned: int) -> dict[str, float]:
        """Return the scores of two tasks of the stream."""
        scores: dict[str, float] = {}
        for name, matrix in self.distances.items():
            scores |= _there_and_back(name, matrix[earlier, learned], matrix[learned, earlier])
        scores["norm_earlier"] = self.embeddings[earlier].norm
        scores["norm_learned"] = self.embeddings[learned].norm
        return scores


def tables(config: DistanceVsForgetting, results: Results) -> dict[str, pd.DataFrame]:
    """Return every table of a run."""
    trained = [record for record in results.records if record.label != EMBEDDINGS]
    tasks = stream_tasks(results.records, config.distances)
    streams = streams_table(trained, tasks)
    steps = steps_table(trained, tasks)
    return {
        "results": results_table(trained),
        "summary": summary_table(trained),
        "streams": streams,
        "steps": steps,
        "correlations": correlations_table(streams, steps),
    }


def stream_tasks(records: Sequence[CellRecord], distances: Sequence[str]) -> dict[int, StreamTasks]:
    """Return the embedded tasks by seed."""
    found = {}
    for record in finished(records):
        if record.label == EMBEDDINGS:
            embeddings = [own.embedding() for own in record.outcome.embeddings]
            found[record.seed] = StreamTasks.of(embeddings, distances)
    return found


def streams_table(trained: Sequence[CellRecord], tasks: Mapping[int, StreamTasks]) -> pd.DataFrame:
    """Return a row per (seed, strategy): ACC, forgetting, and the scores of the stream's tasks.

    ``complexity_d`` is the sum over tasks of the distance d to the trivial task, ``heterogeneity_d`` the
    sum over consecutive tasks of d from one to the next, ``mean_norm`` the mean norm of the embeddings.
    from_scratch, which forgets everything, is left out. So are streams that lack their embeddings.
    """
    scores = scores_table(trained)
    rows = []
    for record in _forgetful(trained, tasks):
        own = scores.loc[(record.label, record.seed)]
        name = {"seed": record.seed, "strategy": record.label}
        outcomes = {outcome: own[outcome] for outcome in STREAM_OUTCOMES}
        rows.append(name | outcomes | tasks[record.seed].stream_scores())
    return pd.DataFrame(rows)


def steps_table(trained: Sequence[CellRecord], tasks: Mapping[int, StreamTasks]) -> pd.DataFrame:
    """Return a row per (seed, strategy, earlier task i, learned task t): what learning t does to i.

    ``drop`` is R[t−1, i] − R[t, i]. ``transfer``, where t comes right after i, is R[t, t] of naive training
    minus that of a network that learns t from its initial weights. A distance that is not the same there
    and back has two columns: ``_forward`` from i to t, ``_backward`` from t to i.
    """
    transfer = _transfer(trained)
    rows = []
    for record in _forgetful(trained, tasks):
        own = tasks[record.seed]
        matrix = record.outcome.matrix()
        for learned in range(1, len(matrix)):
            for earlier in range(learned):
                rows.append(
                    {
                        "seed": record.seed,
                        "strategy": record.label,
                        "earlier": earlier,
                        "learned": learned,
                        "earlier_task": own.embeddings[earlier].task,
                        "learned_task": own.embeddings[learned].task,
                        "drop": _difference_of(matrix[learned - 1, earlier], matrix[learned, earlier]),
                        "transfer": _at(transfer.get(record.seed), learned) if earlier == learned - 1 else np.nan,
                        **own.step_scores(earlier, learned),
                    }
                )
    return pd.DataFrame(rows)


def correlations_table(streams: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's ρ of every score of the tasks with every outcome: columns `CORRELATION_COLUMNS`.

    ``level`` is "stream" (a value for each seed) or "step" (one for each pair of tasks). The intervals
    resample seeds. ``difference`` is the strategy's ρ minus that of naive. p-values are adjusted by
    Holm's method within each level and outcome. Transfer, which does not depend on the strategy, has
    the rows of naive alone.
    """
    rows = [
        *_correlations("stream", streams, STREAM_OUTCOMES),
        *_correlations("step", steps, STEP_OUTCOMES),
    ]
    table = pd.DataFrame(rows, columns=CORRELATION_COLUMNS[:-2])
    families = table.groupby(["level", "outcome"], sort=False)
    for name in ("p", "difference_p"):
        table[f"{name}_holm"] = families[name].transform(holm).astype(float)
    return table


def task_scores(table: pd.DataFrame) -> list[str]:
    """Return the columns of a table of streams or steps that are scores of tasks."""
    own = {"seed", "strategy", "earlier", "learned", "earlier_task", "learned_task", *STREAM_OUTCOMES, *STEP_OUTCOMES}
    return [column for column in table.columns if column not in own]


def _there_and_back(name: str, forward: float, backward: float) -> dict[str, float]:
    if name in DIRECTED:
        return {f"{name}_forward": forward, f"{name}_backward": backward}
    return {name: forward}


def _forgetful(trained: Sequence[CellRecord], tasks: Mapping[int, StreamTasks]) -> list[CellRecord]:
    """Return the finished records of strategies that learn along the stream, where the tasks are known."""
    return [r for r in finished(trained) if r.strategy != FROM_SCRATCH and r.seed in tasks]


def _transfer(trained: Sequence[CellRecord]) -> dict[int, np.ndarray]:
    """Return, by seed, R[t, t] of naive minus that of from_scratch; a seed that lacks one of them is left out."""
    learned: dict[str, dict[int, np.ndarray]] = {NAIVE: {}, FROM_SCRATCH: {}}
    for record in finished(trained):
        if record.strategy in learned:
            learned[record.strategy][record.seed] = record.outcome.matrix().diagonal()
    naive, alone = learned[NAIVE], learned[FROM_SCRATCH]
    return {seed: _difference_of(naive[seed], alone[seed]) for seed in naive if seed in alone}


def _difference_of(first: Any, second: Any) -> Any:
    """Return the difference of accuracies, such that equal differences are equal numbers: ranks depend on it."""
    return np.round(first - second, 12)


def _at(values: np.ndarray | None, place: int) -> float:
    return np.nan if values is None else float(values[place])


def _correlations(level: str, table: pd.DataFrame, outcomes: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the rows of one level, without Holm's adjustment."""
    if table.empty:
        return []
    rows = []
    for outcome in outcomes:
        for strategy in _strategies_with(outcome, table):
            for score in task_scores(table):
                own = _paired(table, strategy, score, outcome)
                found = rank_correlation(own["score"], own["outcome"], own["seed"])
                rows.append((level, strategy, score, outcome, *found, *_difference(own, strategy)))
    return rows


def _strategies_with(outcome: str, table: pd.DataFrame) -> list[str]:
    """Return the strategies that have an outcome of their own."""
    return [NAIVE] if outcome == "transfer" else list(dict.fromkeys(table["strategy"]))


def _paired(table: pd.DataFrame, strategy: str, score: str, outcome: str) -> pd.DataFrame:
    """Return the rows of a strategy: seed, score, outcome, and the outcome of naive on the same tasks."""
    keys = [key for key in ("seed", "earlier", "learned") if key in table]
    naive = table[table["strategy"] == NAIVE].set_index(keys)[outcome]
    own = table[table["strategy"] == strategy].set_index(keys)
    paired = pd.DataFrame({"score": own[score], "outcome": own[outcome], "naive": naive.reindex(own.index)})
    return paired.reset_index()


def _difference(own: pd.DataFrame, strategy: str) -> tuple[float, float, float, float]:
    """Return ρ minus that of naive, its interval and p; NaN for naive itself."""
    if strategy == NAIVE:
        return (np.nan,) * 4
    found = rank_correlation_difference(own["score"], own["outcome"], own["naive"], own["seed"])
    return found.rho, found.ci_low, found.ci_high, found.p
