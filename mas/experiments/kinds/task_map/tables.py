"""Tables of tasks and their distances."""

import io

import numpy as np
import pandas as pd

from mas.experiments.kinds.task_map.config import TaskMap
from mas.experiments.record import CellRecord, finished
from mas.experiments.results import Results

TASK_COLUMNS = ["task", "stream", "seed", "samples", "classes", "norm", "head_loss", "head_accuracy"]


def tables(config: TaskMap, results: Results) -> dict[str, pd.DataFrame]:
    """Return every table of a run."""
    return {"tasks": tasks_table(results.records)}


def files(config: TaskMap, results: Results) -> dict[str, bytes]:
    """Return the embeddings as one ``.npz`` file."""
    buffer = io.BytesIO()
    vectors = [e.vector for r in finished(results.records) for e in r.outcome.embeddings]
    np.savez_compressed(buffer, vectors=np.array(vectors))
    return {"embeddings.npz": buffer.getvalue()}


def tasks_table(records: list[CellRecord]) -> pd.DataFrame:
    """Return a row per (task, seed): columns `TASK_COLUMNS`."""
    rows = []
    for record in finished(records):
        for own in record.outcome.embeddings:
            norm = own.embedding().norm
            rows.append(
                (own.task, record.label, record.seed, own.samples, own.classes, norm, own.head_loss, own.head_accuracy)
            )
    return pd.DataFrame(rows, columns=TASK_COLUMNS)
