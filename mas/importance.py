"""Which weights matter: importance measures, each a few lines over `mean_moments`.

Every measure is a mean over samples of a moment of per-sample gradients, a tensor per parameter
that requires a gradient. None needs more than one pass over the data.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mas.gradients import Batch, Forward, batch_size, mean_moments, run_forward

Labels = Literal["exact", "sampled", "empirical", "predicted"]
Norm = Literal["squared_l2", "l2"]


def mas_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    norm: Norm = "squared_l2",
    forward: Forward | None = None,
    max_samples: int | None = None,
) -> dict[str, Tensor]:
    """Memory Aware Synapses: Ω = 1/N Σ_n |∂‖F(x_n)‖² / ∂θ|. Needs no labels.

    Args:
        model: gives the output F(x), before any softmax.
        batches: an iterable of inputs, or of tuples or lists that start with the input, such as
            a data loader of ``(x, y)``. Labels are not looked at.
        norm: "squared_l2" differentiates ‖F‖², "l2" differentiates ‖F‖.
        forward: ``forward(model, batch)`` gives the output where ``model(x)`` would not.
        max_samples: use only the first samples that ``batches`` gives.

    Returns:
        Importance by parameter name, of the parameter's shape: a mean over samples, in units of
        output² (or output) per unit of weight. Batching does not change it.

    Raises:
        ValueError, FloatingPointError, RuntimeError: as `mas.per_sample_moments`.

    Source: Aljundi et al. 2018, Memory Aware Synapses, eq. 2 and the squared-norm form of sec. 4.1.

    For y = w x with w = 3: ∂y²/∂w = 2 w x², so Ω = mean of 6 x²:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 3.0)
    >>> mas_importance(model, [torch.tensor([[1.0], [2.0]])])
    {'weight': tensor([[15.]])}
    """
    if norm not in _NORMS:
        raise ValueError(f"norm is {norm!r}; known are {', '.join(map(repr, _NORMS))}")
    return mean_moments(model, batches, _NORMS[norm], "abs", forward, max_samples)


def fisher_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    labels: Labels = "exact",
    forward: Forward | None = None,
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Diagonal Fisher information of a classifier, F = 1/N Σ_n E_c (∂ log p(c|x_n) / ∂θ)².

    Args:
        model: gives logits of shape (N, classes).
        batches: an iterable of ``(x, y, ...)``; unlabelled batches do unless labels="empirical".
        labels: the expectation over c. "exact": under the model's own p(c|x), one backward pass
            a class; "sampled": one draw c ~ p(c|x); "empirical": c = y; "predicted":
            c = argmax p(c|x).
        forward: ``forward(model, batch)`` gives the logits where ``model(x)`` would not.
        max_samples: use only the first samples that ``batches`` gives.
        generator: draws the labels of "sampled", one number a sample; by default a fresh one,
            seeded 0, so that equal calls give equal results.

    Returns:
        Importance by parameter name, of the parameter's shape: a mean over samples, in nats per
        squared unit of weight.

    Raises:
        ValueError: the output is not of shape (N, classes); labels are needed and not there.
        FloatingPointError, RuntimeError: as `mas.per_sample_moments`.

    Source: Kirkpatrick et al. 2017 (EWC); the four kinds as told apart by van de Ven 2025
    (arXiv 2502.11756).
    """
    if labels not in _LOG_LIKELIHOODS:
        raise ValueError(f"labels is {labels!r}; known are {', '.join(map(repr, _LOG_LIKELIHOODS))}")
    objective = _LOG_LIKELIHOODS[labels]
    if labels == "sampled":
        run = forward or run_forward
        drawn = _with_uniforms(batches, generator or torch.Generator().manual_seed(0))
        return mean_moments(model, drawn, objective, "square", lambda m, pair: run(m, pair[0]), max_samples)
    return mean_moments(model, batches, objective, "square", forward, max_samples)


def _squared_l2(output: Tensor, batch: Batch) -> Tensor:
    return output.flatten(1).square().sum(1)


def _l2(output: Tensor, batch: Batch) -> Tensor:
    return torch.linalg.vector_norm(output.flatten(1), dim=1)  # its gradient at F = 0 is 0


_NORMS: dict[str, Callable[[Tensor, Batch], Tensor]] = {"squared_l2": _squared_l2, "l2": _l2}


def _exact(output: Tensor, batch: Batch) -> Tensor:
    """Give √p(c|x) log p(c|x), shape (N, C): its squared gradients are p(c|x) (∂ log p(c|x))²."""
    log_p = _log_p(output)
    return log_p.detach().mul(0.5).exp() * log_p


def _empirical(output: Tensor, batch: Batch) -> Tensor:
    if isinstance(batch, Tensor) or len(batch) < 2:
        raise ValueError(
            "labels='empirical' needs batches of (x, y); got unlabelled ones: "
            "give labels, or use 'exact', 'sampled' or 'predicted'"
        )
    return _at(_log_p(output), batch[1])


def _predicted(output: Tensor, batch: Batch) -> Tensor:
    log_p = _log_p(output)
    return _at(log_p, log_p.argmax(1))


def _sampled(output: Tensor, batch: Batch) -> Tensor:
    """Draw c ~ p(c|x) by inverting the cumulative p(c|x) at the sample's uniform number."""
    log_p = _log_p(output)
    cumulative = log_p.detach().double().exp().cumsum(1)
    label = (cumulative < batch[1][:, None] * cumulative[:, -1:]).sum(1)
    return _at(log_p, label.clamp(max=log_p.shape[1] - 1))


_LOG_LIKELIHOODS: dict[str, Callable[[Tensor, Batch], Tensor]] = {
    "exact": _exact,
    "sampled": _sampled,
    "empirical": _empirical,
    "predicted": _predicted,
}


def _log_p(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the Fisher information needs logits of shape (N, classes); the model gave {got}: "
            "select them with forward="
        )
    return output.log_softmax(1)


def _at(log_p: Tensor, label: Tensor) -> Tensor:
    return log_p.gather(1, label.to(log_p.device)[:, None])[:, 0]


def _with_uniforms(batches: Iterable[Batch], generator: torch.Generator) -> Iterator[tuple[Batch, Tensor]]:
    for batch in batches:
        yield batch, torch.rand(batch_size(batch), generator=generator, dtype=torch.float64)
