"""TaskEmbedding: a vector for a task, and the prior's precision beside it."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BETA = 1e-9
"""Default weight of the prior in `mas.embed`, in nats.

Chosen on scikit-learn's digits with small CNNs of width 32 and 8, trained on the ten digits for 5 epochs, and the
45 pairs of digits as tasks. At 1e-9 the scale is below F in 55 % and 87 % of the filters (F > 0 in 81 % and
88 %). A pair's embedding from one half of its images is nearest to that of the other half for 87 % and 69 % of
the pairs; without a prior (β → 0) for 89 % and 69 %, at 1e-6 for 56 % and 67 %. A smaller β pushes the
distance from the trivial task to its upper end for all tasks: the range over the pairs is 0.12 to
0.63 (width 32) at 1e-9, 0.50 to 0.75 at 1e-11.
"""


@dataclass(frozen=True, eq=False)
class TaskEmbedding:
    """The embedding of one task by one probe network.

    The task says how precisely each weight of the probe must be known. With the loss
    E[mean NLL] + β KL(N(w, σ²) ‖ N(0, λ²)), the best posterior of a filter's weights has the
    precision β/σ² = F + β/λ², where F is the filter's mean Fisher information. `vector` is F and
    `scale` is β/λ².

    Attributes:
        vector: F of each filter, shape (filters,), float64, in nats per squared unit of weight.
        scale: β/λ² of each filter's layer, shape (filters,), float64, in the same unit.
        probe: a digest of the probe's body; only embeddings by one probe can be compared.
        task: a name.
        samples: how many samples it was made of.
        classes: how many classes they have.
        labels: the estimator, see `mas.embed`.
        beta: β, the weight of the prior, in nats.
        head_loss: cross-entropy of the fitted head on these samples, in nats.
        head_accuracy: its accuracy on them, from 0 to 1.

    Source: Achille et al. 2019, Task2Vec (ICCV), the robust Fisher computation.
    """

    vector: Tensor
    scale: Tensor
    probe: str
    task: str = ""
    samples: int = 0
    classes: int = 0
    labels: str = "exact"
    beta: float = BETA
    head_loss: float = float("nan")
    head_accuracy: float = float("nan")

    @property
    def precision(self) -> Tensor:
        """The posterior's precision β/σ² of each filter: vector + scale, shape (filters,)."""
        return self.vector + self.scale

    @property
    def norm(self) -> float:
        """The L1 norm of the vector, in nats per squared unit of weight: the task's difficulty."""
        return float(self.vector.abs().sum())

    def trivial(self) -> "TaskEmbedding":
        """Return the embedding of the trivial task for the same probe: no information, F = 0."""
        nothing = torch.zeros_like(self.vector)
        return TaskEmbedding(nothing, self.scale, self.probe, task="trivial", labels=self.labels, beta=self.beta)

    def save(self, path: str | Path) -> None:
        """Write the embedding as an ``.npz`` file, without pickled objects; ``.npz`` is added to a name without it."""
        np.savez(
            _file(path),
            vector=self.vector.numpy(),
            scale=self.scale.numpy(),
            texts=np.array([self.probe, self.task, self.labels]),
            counts=np.array([self.samples, self.classes]),
            beta=np.array(self.beta),
            head=np.array([self.head_loss, self.head_accuracy]),
        )

    @classmethod
    def load(cls, path: str | Path) -> "TaskEmbedding":
        """Return the embedding that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no embedding, or is damaged.
        """
        try:
            return cls._read(_file(path))
        except _DAMAGED as error:
            cause = type(error).__name__
            raise ValueError(f"{path}: holds no task embedding ({cause}); give a file of TaskEmbedding.save") from None

    @classmethod
    def _read(cls, path: Path) -> "TaskEmbedding":
        with np.load(path, allow_pickle=False) as file:
            probe, task, labels = file["texts"].tolist()
            samples, classes = file["counts"].tolist()
            loss, accuracy = file["head"].tolist()
            return cls(
                vector=torch.from_numpy(file["vector"]),
                scale=torch.from_numpy(file["scale"]),
                probe=probe,
                task=task,
                samples=samples,
                classes=classes,
                labels=labels,
                beta=float(file["beta"]),
                head_loss=loss,
                head_accuracy=accuracy,
            )


# what numpy raises for a file that is cut off, overwritten, or holds something else
_DAMAGED = (IsADirectoryError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def _file(path: str | Path) -> Path:
    """Return a path with the ending that NumPy gives to a file without it."""
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
