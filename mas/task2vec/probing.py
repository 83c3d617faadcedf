"""Task2Vec: a task as a vector, the Fisher information that it has in the filters of a probe network.

A probe network is kept as it is; only a new head is fitted to the task's labels. The diagonal Fisher
information of the probe's weights then says which filters the task relies on. Its mean over each
filter is the task's embedding, of one length for all tasks, whatever their classes.

Source: Achille et al. 2019, Task2Vec: Task Embedding for Meta-Learning (ICCV).
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mas.batches import Batch, Forward, count_correct, run_forward
from mas.importance import Labels, fisher_importance
from mas.state import preserving_state, unwrap_model
from mas.task2vec.embedding import BETA, TaskEmbedding
from mas.task2vec.filters import filters_of, prior_variance
from mas.task2vec.head import (
    check_head,
    class_numbers,
    features_of,
    find_head,
    fit_head,
    put_head,
    samples_of,
    with_labels,
)
from mas.task2vec.variational import STEPS, fit_noise

Estimator = Literal[Labels, "variational"]
ESTIMATORS: tuple[str, ...] = (*get_args(Labels), "variational")
"""Values of ``labels`` in `embed`."""


def embed(
    probe: nn.Module,
    batches: Iterable[Batch],
    *,
    task: str = "",
    head: str | None = None,
    labels: Estimator = "exact",
    beta: float = BETA,
    classes: int | None = None,
    weight_decay: float = 1e-3,
    steps: int = STEPS,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
    max_bytes: int | None = None,
) -> TaskEmbedding:
    """Return the embedding of a task: the Fisher information of a probe's filters, with a head fitted to the task.

    The head is a linear layer on the features that enter the probe's own. It is fitted to
    convergence, from zeros, by L-BFGS in float64, so that it does not depend on batches, on the
    names of the classes or on chance. The estimators that draw ("sampled", "hutchinson") draw in the
    order of the classes. A filter is a row of a weight with two or more axes (an output channel of
    a convolution); biases and normalisation are left out.

    Args:
        probe: a network, such as one that was trained on many classes. It is left as it was.
        batches: of ``(x, y, ...)``, the labels y any whole numbers of shape (N,). They are gone through several times.
        task: a name.
        head: the name of the module to replace, such as "fc"; by default the last one that is called.
        labels: the estimator of the Fisher information F. "exact", "sampled", "empirical", "predicted"
            and "hutchinson": as for `mas.fisher_importance`. "variational": noise of standard
            deviation σ on each filter's weights, σ fitted to mean NLL + β KL; F = β/σ² − β/λ².
        beta: β, the weight of the prior N(0, λ²) of a layer's weights, λ² their mean square. It sets the
            precision β/λ² that a filter has without a task, see `TaskEmbedding`. Filters with F far
            below it count as unused in every distance; with a large β all tasks look trivial.
            The default was chosen on digits, see `mas.task2vec.BETA`.
        classes: the number of classes, if the labels are to be held against it.
        weight_decay: of the head, above 0: keeps the fit finite where classes are separable. With few images of each
            class, 1 gives much steadier embeddings than the default: see docs/task2vec.md.
        steps: of Adam, for "variational" alone; each is two forward and backward passes of a batch.
        forward: ``forward(model, batch)`` returns the logits; by default ``model(x)``.
        generator: draws for "sampled", "hutchinson" and "variational"; by default a new one, seeded 0,
            so that equal calls return equal results.
        max_bytes: as for `mas.fisher_importance`.

    Raises:
        ValueError: an unknown estimator, β that is not above 0, no sample, labels that are missing or
            of one class only, fewer samples than classes, no head found, or a head whose input is
            not of shape (N, features).
        FloatingPointError, RuntimeError: as `mas.fisher_importance`.
    """
    _check_options(labels, beta)
    with preserving_state(probe):  # a loader may draw from the global random stream
        batches = samples_of(list(batches))
    body = deepcopy(unwrap_model(probe)).eval()
    name = head or find_head(body, batches[0], forward)
    features = features_of(body, name, batches, forward or run_forward)
    y, names = class_numbers(batches, classes)
    fitted = fit_head(features, y, len(names), weight_decay)
    model = put_head(body, name, fitted)
    check_head(model, name, batches[0], forward or run_forward)
    filters = filters_of(model, name)
    prior = prior_variance(model, filters)
    relabelled = with_labels(batches, y)
    if labels == "variational":
        run = forward or run_forward
        vector, scale = fit_noise(model, relabelled, filters, beta=beta, steps=steps, run=run, generator=generator)
    else:
        fisher = fisher_importance(
            model, relabelled, labels=labels, forward=forward, generator=generator, max_bytes=max_bytes
        )
        vector = filters.mean(fisher)
        scale = beta / prior
    logits = fitted(features)
    y = y.to(logits.device)
    return TaskEmbedding(
        vector=vector,
        scale=scale,
        probe=_digest(unwrap_model(probe), name),
        task=task,
        samples=len(y),
        classes=len(names),
        labels=labels,
        beta=beta,
        head_loss=float(F.cross_entropy(logits, y)),
        head_accuracy=count_correct(logits, y) / len(y),
    )


def _check_options(labels: str, beta: float) -> None:
    if labels not in ESTIMATORS:
        raise ValueError(f"labels is {labels!r}; known are {', '.join(map(repr, ESTIMATORS))}")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta is {beta}; give a finite number above 0")


def _digest(probe: nn.Module, head: str) -> str:
    """Return a short text that differs where the parameters or buffers of the probe's body differ."""
    digest = hashlib.sha256()
    for name, tensor in _state(probe, head):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _state(probe: nn.Module, head: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in probe.state_dict().items():
        if not name.startswith(f"{head}."):
            yield name, tensor
