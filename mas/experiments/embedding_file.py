"""All embeddings of a run in one ``.npz`` file."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from mas.experiments.errors import UserError
from mas.task2vec import TaskEmbedding


@dataclass(frozen=True)
class EmbeddedTask:
    """The embedding of a task with one seed."""

    task: str  # unique among the tasks of a run
    stream: str  # the title of its stream
    seed: int
    embedding: TaskEmbedding


def embeddings_as_npz(embedded: Sequence[EmbeddedTask]) -> bytes:
    """Return embeddings as the content of an ``.npz`` file, without pickled objects, one row for each.

    ``vectors`` and ``scales`` have shape (embeddings, filters), the other arrays (embeddings,).
    """
    own = [one.embedding for one in embedded]
    arrays = {
        "vectors": np.array([e.vector.numpy() for e in own]),
        "scales": np.array([e.scale.numpy() for e in own]),
        "task": np.array([one.task for one in embedded], dtype=str),
        "stream": np.array([one.stream for one in embedded], dtype=str),
        "seed": np.array([one.seed for one in embedded], dtype=np.int64),
    }
    for name, kind in _FIELDS.items():
        arrays[name] = np.array([getattr(e, name) for e in own], dtype=kind)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def load_embeddings(path: str | Path) -> list[TaskEmbedding]:
    """Return the embeddings of ``embeddings.npz``, in its order: seed by seed, and the streams of a seed in turn.

    Args:
        path: of the file, or of the folder of the run that holds it.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    file = Path(path) / "embeddings.npz" if Path(path).is_dir() else Path(path)
    try:
        with np.load(file, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in ("vectors", "scales", "task", *_FIELDS)}
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        cause = " ".join(str(error).split())
        raise UserError(f"{file}: holds no embeddings ({cause}); give embeddings.npz of a task map") from None
    return [_embedding(arrays, row) for row in range(len(arrays["task"]))]


# of TaskEmbedding, and of the arrays in the file
_FIELDS = {
    "probe": str,
    "samples": np.int64,
    "classes": np.int64,
    "labels": str,
    "beta": np.float64,
    "head_loss": np.float64,
    "head_accuracy": np.float64,
}


def _embedding(arrays: dict[str, np.ndarray], row: int) -> TaskEmbedding:
    fields = {name: arrays[name][row].item() for name in ("task", *_FIELDS)}
    vector, scale = (torch.from_numpy(arrays[name][row].copy()) for name in ("vectors", "scales"))
    return TaskEmbedding(vector=vector, scale=scale, **fields)
