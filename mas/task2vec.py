"""Task2Vec: a task as a vector, the Fisher information that it has in the filters of a probe network.

A probe network is kept as it is; only a new head is fitted to the task's labels. The diagonal Fisher
information of the probe's weights then says which filters the task relies on. Its mean over each
filter is the task's embedding, of one length for all tasks, whatever their classes.

Source: Achille et al. 2019, Task2Vec: Task Embedding for Meta-Learning (ICCV).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from mas.batches import Batch, Forward, count_correct, labels_of, run_forward, with_samples
from mas.importance import Labels, fisher_importance, last_layer
from mas.state import preserving_state, unwrap_model

Distance = Callable[["TaskEmbedding", "TaskEmbedding"], float]

ALPHA = 0.15
"""Weight of the trivial task in `asymmetric_distance` (Achille et al. 2019)."""

_ITERATIONS = 500  # of L-BFGS, at most; a head is fitted long before


@dataclass(frozen=True, eq=False)
class TaskEmbedding:
    """The embedding of one task by one probe network.

    Attributes:
        vector: mean Fisher information of each filter, shape (filters,), float64, in nats per squared
            unit of weight.
        scale: the same of a task that says nothing, shape (filters,): the prior's precision.
        probe: a digest of the probe's body; only embeddings by one probe can be compared.
        task: a name.
        samples: how many samples it was made of.
        classes: how many classes they have.
        labels: the estimator of the Fisher information, see `mas.fisher_importance`.
        head_loss: cross-entropy of the fitted head on these samples, in nats.
        head_accuracy: its accuracy on them, from 0 to 1.
    """

    vector: Tensor
    scale: Tensor
    probe: str
    task: str = ""
    samples: int = 0
    classes: int = 0
    labels: str = "exact"
    head_loss: float = float("nan")
    head_accuracy: float = float("nan")

    @property
    def norm(self) -> float:
        """The L1 norm of the vector: tasks with a large one are difficult."""
        return float(self.vector.abs().sum())

    def trivial(self) -> "TaskEmbedding":
        """Return the embedding of the trivial task, which says nothing, for the same probe."""
        return TaskEmbedding(self.scale.clone(), self.scale, self.probe, task="trivial", labels=self.labels)

    def save(self, path: str | Path) -> None:
        """Write the embedding as an ``.npz`` file, without pickled objects."""
        np.savez(
            Path(path),
            vector=self.vector.numpy(),
            scale=self.scale.numpy(),
            texts=np.array([self.probe, self.task, self.labels]),
            counts=np.array([self.samples, self.classes]),
            head=np.array([self.head_loss, self.head_accuracy]),
        )

    @classmethod
    def load(cls, path: str | Path) -> "TaskEmbedding":
        """Return the embedding that `save` wrote.

        Raises:
            ValueError: the file holds no embedding.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                vector, scale = torch.from_numpy(file["vector"]), torch.from_numpy(file["scale"])
                probe, task, labels = file["texts"].tolist()
                samples, classes = file["counts"].tolist()
                loss, accuracy = file["head"].tolist()
        except (KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: holds no task embedding ({error}); give a file of TaskEmbedding.save") from None
        return cls(vector, scale, probe, task, samples, classes, labels, loss, accuracy)


def embed(
    probe: nn.Module,
    batches: Iterable[Batch],
    *,
    task: str = "",
    head: str | None = None,
    labels: Labels = "exact",
    weight_decay: float = 1e-3,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
    max_bytes: int | None = None,
) -> TaskEmbedding:
    """Return the embedding of a task: the Fisher information of a probe's filters, with a head fitted to the task.

    The head is a linear layer on the features that enter the probe's own. It is fitted to
    convergence, from zeros, by L-BFGS in float64, so that the result does not depend on batches,
    on the names of the classes or on chance. A filter is a row of a weight with two or more axes (an
    output channel of a convolution); biases and normalisation are left out.

    Args:
        probe: a network, such as one that was trained on many classes. It is left as it was.
        batches: of ``(x, y, ...)``, the labels y of any whole numbers. They are gone through several times.
        task: a name.
        head: the name of the module to replace, such as "fc"; by default the last one that is called.
        labels, generator, max_bytes: as for `mas.fisher_importance`.
        weight_decay: of the head, above 0: keeps the fit finite where classes are separable.
        forward: ``forward(model, batch)`` returns the logits; by default ``model(x)``.

    Raises:
        ValueError: no sample, labels that are missing or of one class only, no head found, or a head whose
            input is not of shape (N, features).
        FloatingPointError, RuntimeError: as `mas.fisher_importance`.
    """
    if not weight_decay > 0:
        raise ValueError(f"weight_decay is {weight_decay}; give a number above 0")
    batches = list(with_samples(batches))
    if not batches:
        raise ValueError("batches gave no sample; give a list of batches")
    body = deepcopy(unwrap_model(probe)).eval()
    name = head or _find_head(body, batches[0], forward)
    features = _features(body, name, batches, forward or run_forward)
    y, classes = _class_numbers(batches)
    fitted = _fit_head(features, y, classes, weight_decay)
    model = _with_head(body, name, fitted)
    weights = _freeze_all_but_filters(model, name)
    relabelled = [(batch[0], own, *batch[2:]) for batch, own in zip(batches, y.split(_sizes(batches)), strict=True)]
    fisher = fisher_importance(
        model, relabelled, labels=labels, forward=forward, generator=generator, max_bytes=max_bytes
    )
    vector = torch.cat([_mean_by_filter(model, weight, fisher[weight]) for weight in weights])
    logits = fitted(features)
    return TaskEmbedding(
        vector=vector,
        scale=torch.ones_like(vector),
        probe=_digest(unwrap_model(probe), name),
        task=task,
        samples=len(y),
        classes=classes,
        labels=labels,
        head_loss=float(F.cross_entropy(logits, y)),
        head_accuracy=count_correct(logits, y) / len(y),
    )


def cosine_distance(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return d_sym: the cosine distance of F_a / (F_a + F_b) and F_b / (F_a + F_b), from 0 to 1.

    Filters that neither task uses are left out.

    Source: Achille et al. 2019.
    """
    x, y = _vectors(a, b)
    total = x + y
    used = total > 0
    return _cosine(x[used] / total[used], y[used] / total[used])


def asymmetric_distance(a: TaskEmbedding, b: TaskEmbedding, *, alpha: float = ALPHA) -> float:
    """Return d_asym(a → b) = d_sym(a, b) − α d_sym(a, t₀), t₀ the trivial task: how far it is from a to b.

    A difficult task a makes a good start, so that what it is away from the trivial one is taken off.

    Source: Achille et al. 2019.
    """
    return cosine_distance(a, b) - alpha * cosine_distance(a, a.trivial())


def kl_divergence(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return KL(N(0, 1/h_a) ‖ N(0, 1/h_b)) in nats, summed over filters; h = F + scale is the precision."""
    x, y = _precisions(a, b)
    return float(0.5 * (y / x - 1 - (y / x).log()).sum())


def jensen_shannon(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return ½ KL(p_a ‖ m) + ½ KL(p_b ‖ m) in nats, m the Gaussian with the mean variance; summed over filters."""
    x, y = _precisions(a, b)
    middle = 2 / (1 / x + 1 / y)
    return float(0.25 * sum((middle / h - 1 - (middle / h).log()).sum() for h in (x, y)))


def correlation_distance(a: TaskEmbedding, b: TaskEmbedding) -> float:
    """Return 1 minus the Pearson correlation of the two vectors, from 0 to 2."""
    x, y = _vectors(a, b)
    return _cosine(x - x.mean(), y - y.mean())


DISTANCES: dict[str, Distance] = {
    "cosine": cosine_distance,
    "asymmetric": asymmetric_distance,
    "kl": kl_divergence,
    "jensen_shannon": jensen_shannon,
    "correlation": correlation_distance,
}
"""Name -> distance of two embeddings; "asymmetric" and "kl" go from the first to the second."""


def distance_matrix(embeddings: Sequence[TaskEmbedding], distance: str = "cosine") -> Tensor:
    """Return the distances from each embedding (row) to each (column), shape (tasks, tasks), float64.

    Raises:
        ValueError: the distance is not known, or embeddings are of different probes.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}; known are {', '.join(map(repr, DISTANCES))}")
    measure = DISTANCES[distance]
    rows = [[measure(a, b) for b in embeddings] for a in embeddings]
    return torch.tensor(rows, dtype=torch.float64)


def stream_complexity(embeddings: Sequence[TaskEmbedding]) -> float:
    """Return Σ_t d_sym(e_t, e_0): the total complexity of a stream, e_0 the trivial task.

    Source: Nguyen et al. 2019 (arXiv 1908.01091).
    """
    return sum(cosine_distance(e, e.trivial()) for e in embeddings)


def stream_heterogeneity(embeddings: Sequence[TaskEmbedding]) -> float:
    """Return Σ_t d_sym(e_t, e_{t+1}): how much the tasks of a stream differ from one to the next.

    Source: Nguyen et al. 2019 (arXiv 1908.01091).
    """
    return sum(cosine_distance(a, b) for a, b in pairwise(embeddings))


def _find_head(body: nn.Module, batch: Batch, forward: Forward | None) -> str:
    owners = {name.rpartition(".")[0] for name in last_layer(body, batch, forward=forward)}
    if len(owners) != 1 or "" in owners:
        raise ValueError("the probe has no last layer that a head could replace; name it: head='fc'")
    return owners.pop()


def _features(body: nn.Module, head: str, batches: Sequence[Batch], run: Forward) -> Tensor:
    """Return what enters the head, shape (N, features), float64."""
    modules = dict(body.named_modules())
    if head not in modules or head == "":
        raise ValueError(f"head is {head!r}; the probe has no such module")
    found: list[Tensor] = []
    hook = modules[head].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].detach().double()))
    try:
        with preserving_state(body), torch.no_grad():
            for batch in batches:
                run(body, batch)
    finally:
        hook.remove()
    if any(part.ndim != 2 for part in found):
        raise ValueError(f"the input of {head!r} has shape {tuple(found[0].shape)}; a head needs (N, features)")
    return torch.cat(found)


def _class_numbers(batches: Sequence[Batch]) -> tuple[Tensor, int]:
    """Return the labels as numbers from 0, and the number of classes."""
    labels = torch.cat([labels_of(batch, "an embedding") for batch in batches])
    classes, numbers = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"all labels are {classes.tolist()}; a task has two classes or more")
    return numbers, len(classes)


def _sizes(batches: Sequence[Batch]) -> list[int]:
    return [len(batch[1]) for batch in batches]


def _fit_head(features: Tensor, y: Tensor, classes: int, weight_decay: float) -> nn.Linear:
    """Return the head with the least mean cross-entropy + ½ weight_decay ‖weights‖², in float64."""
    head = nn.utils.skip_init(nn.Linear, features.shape[1], classes, dtype=torch.float64, device=features.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=_ITERATIONS,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(head(features), y.to(features.device)) + weight_decay / 2 * head.weight.square().sum()
        value.backward()
        return float(value.detach())

    with torch.enable_grad():
        optimizer.step(loss)
    return head.requires_grad_(False)


def _with_head(body: nn.Module, name: str, head: nn.Linear) -> nn.Module:
    """Put a head in the place of the module with a name, in the body's number type."""
    old = body.get_submodule(name)
    dtype = next((p.dtype for p in (*old.parameters(), *body.parameters())), torch.float32)
    parent, _, own = name.rpartition(".")
    setattr(body.get_submodule(parent), own, deepcopy(head).to(dtype))
    return body


def _freeze_all_but_filters(model: nn.Module, head: str) -> list[str]:
    """Freeze biases, normalisation and the head; return the names of the weights that are left."""
    names = []
    for name, parameter in model.named_parameters():
        is_filter = parameter.ndim >= 2 and not name.startswith(f"{head}.")
        parameter.requires_grad_(is_filter)
        if is_filter:
            names.append(name)
    if not names:
        raise ValueError("the probe has no weights before its head; there is nothing to embed in")
    return names


def _mean_by_filter(model: nn.Module, name: str, fisher: Tensor) -> Tensor:
    owner = model.get_submodule(name.rpartition(".")[0])
    axis = 1 if isinstance(owner, _ConvTransposeNd) else 0  # there the first axis counts inputs
    return fisher.double().movedim(axis, 0).flatten(1).mean(1).cpu()


def _digest(probe: nn.Module, head: str) -> str:
    """Return a short text that differs where the probe's body differs."""
    digest = hashlib.sha256()
    for name, tensor in _state(probe, head):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _state(probe: nn.Module, head: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in probe.state_dict().items():
        if not name.startswith(f"{head}."):
            yield name, tensor


def _vectors(a: TaskEmbedding, b: TaskEmbedding) -> tuple[Tensor, Tensor]:
    if a.probe != b.probe:
        raise ValueError(f"{a.task or 'the first'} and {b.task or 'the second'} are embeddings by different probes")
    return a.vector, b.vector


def _precisions(a: TaskEmbedding, b: TaskEmbedding) -> tuple[Tensor, Tensor]:
    x, y = _vectors(a, b)
    return x + a.scale, y + b.scale


def _cosine(x: Tensor, y: Tensor) -> float:
    """Return 1 − cos; 0 between equal vectors, also between zeros, and 1 if one alone is zero."""
    product: Any = x.norm() * y.norm()
    if product == 0:
        return 0.0 if torch.equal(x, y) else 1.0
    return float(1 - (x @ y) / product)
