"""Which weights matter: importance measures, each a few lines over `mean_moments`.

Every measure is a mean over samples of a moment of per-sample gradients, a tensor per parameter
that requires a gradient. None needs more than one pass over the data. At the end stand two that
measure nothing, for comparison.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mas.batches import Batch, Forward, batch_size, run_forward
from mas.gradients import Reduction, mean_moments, trained_parameters
from mas.state import named_parameters, preserving_state, unwrap_model

Labels = Literal["exact", "sampled", "empirical", "predicted"]
Norm = Literal["squared_l2", "l2"]


def mas_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    norm: Norm = "squared_l2",
    forward: Forward | None = None,
    max_samples: int | None = None,
    max_bytes: int | None = None,
    reduction: Reduction = "sample",
) -> dict[str, Tensor]:
    """Memory Aware Synapses: Ω = 1/N Σ_n |∂‖F(x_n)‖² / ∂θ|. Needs no labels.

    Args:
        model: gives the output F(x), before any softmax.
        batches: an iterable of inputs, or of tuples or lists that start with the input, such as
            a data loader of ``(x, y)``. Labels are not looked at.
        norm: "squared_l2" differentiates ‖F‖², "l2" differentiates ‖F‖.
        forward: ``forward(model, batch)`` gives the output where ``model(x)`` would not.
        max_samples: use only the first samples that ``batches`` gives.
        max_bytes, reduction: as for `mas.mean_moments`.

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
    return mean_moments(model, batches, _NORMS[norm], "abs", forward, max_samples, max_bytes, reduction)


def fisher_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    labels: Labels = "exact",
    forward: Forward | None = None,
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
    max_bytes: int | None = None,
    reduction: Reduction = "sample",
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
        max_bytes, reduction: as for `mas.mean_moments`.

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
    if labels == "sampled":
        batches = _with_uniforms(batches, generator or torch.Generator().manual_seed(0))
        forward = _on_first_of_pair(forward or run_forward)
    objective = _LOG_LIKELIHOODS[labels]
    return mean_moments(model, batches, objective, "square", forward, max_samples, max_bytes, reduction)


def uniform_importance(model: nn.Module, batches: Iterable[Batch], forward: Forward | None = None) -> dict[str, Tensor]:
    """Ones: with a quadratic penalty that is L2 to the anchor, the control that knows nothing.

    Args:
        model, batches, forward: as for `mas_importance`. They only show which parameters the
            output depends on; for others, such as the heads of other tasks, the importance is 0.

    Raises:
        ValueError: no parameter requires a gradient, or the output depends on none; no batch.
    """
    unused = trained_parameters(model)
    ones = {name: torch.zeros_like(p, requires_grad=False) for name, p in unused.items()}
    seen = False
    with preserving_state(model), torch.enable_grad():
        for batch in batches:
            seen = True
            for name in _used(unused, (forward or run_forward)(unwrap_model(model), batch)):
                ones[name].fill_(1.0)
                del unused[name]
            if not unused:
                break
    if not seen:
        raise ValueError("batches gave no sample; give a data loader or a list of batches")
    if len(unused) == len(ones):
        raise ValueError(
            "the output does not depend on any parameter that requires a gradient; "
            "is it detached, or run under no_grad?"
        )
    return ones


def random_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    values: Literal["uniform", "mas"] = "uniform",
    forward: Forward | None = None,
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Random importance: the control that tells whether it matters *which* weights are protected.

    Args:
        model, batches, forward, max_samples: as for `mas_importance`.
        values: "uniform" draws from 0 to 1 wherever `uniform_importance` is not 0; "mas" permutes
            the MAS importance within each parameter, which keeps its distribution and so the
            strength of the penalty.
        generator: makes the draws, on the CPU; by default a fresh one, seeded 0.
    """
    if values not in ("uniform", "mas"):
        raise ValueError(f"values is {values!r}; known are 'uniform', 'mas'")
    generator = generator or torch.Generator().manual_seed(0)
    if values == "uniform":
        ones = uniform_importance(model, batches, forward)
        return {name: t * torch.rand(t.shape, generator=generator).to(t) for name, t in ones.items()}
    found = mas_importance(model, batches, forward=forward, max_samples=max_samples)
    return {
        name: t.flatten()[torch.randperm(t.numel(), generator=generator).to(t.device)].reshape(t.shape)
        for name, t in found.items()
    }


def last_layer(model: nn.Module, batch: Batch, forward: Forward | None = None) -> set[str]:
    """Name the parameters of the module that is called last: the classifier, or a task's head.

    >>> sorted(last_layer(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.ones(1, 2)))
    ['2.bias', '2.weight']
    """
    called: list[nn.Module] = []
    with preserving_state(model), torch.no_grad():
        owners = [m for m in unwrap_model(model).modules() if any(True for _ in m.parameters(recurse=False))]
        hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in owners]
        try:
            (forward or run_forward)(unwrap_model(model), batch)
        finally:
            for hook in hooks:
                hook.remove()
    last = {id(p) for p in called[-1].parameters(recurse=False)} if called else set()
    return {name for name, p in named_parameters(model).items() if id(p) in last}


def _used(params: dict[str, nn.Parameter], output: Any) -> list[str]:
    """Name the parameters that an output depends on."""
    sums = [leaf.sum() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    found = torch.autograd.grad(sums, list(params.values()), allow_unused=True) if sums else ()
    return [name for name, g in zip(params, found, strict=False) if g is not None]


def _squared_l2(output: Tensor, batch: Batch) -> Tensor:
    return _flat(output).square().sum(1)


def _l2(output: Tensor, batch: Batch) -> Tensor:
    return torch.linalg.vector_norm(_flat(output), dim=1)  # its gradient at F = 0 is 0


def _flat(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim == 0:
        raise ValueError(
            f"MAS needs an output of shape (N, ...); the model gave {_named(output)}: select it with forward="
        )
    return output.reshape(len(output), -1)


def _named(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


_NORMS: dict[str, Callable[[Tensor, Batch], Tensor]] = {"squared_l2": _squared_l2, "l2": _l2}


def _exact(output: Tensor, batch: Batch) -> Tensor:
    """Give √p(c|x) log p(c|x), shape (N, C): its squared gradients are p(c|x) (∂ log p(c|x))²."""
    log_p = _log_p(output)
    root = log_p.detach().mul(0.5).exp()
    return root * torch.where(root > 0, log_p, 0.0)  # a masked class, p = 0, has no share


def _empirical(output: Tensor, batch: Batch) -> Tensor:
    if isinstance(batch, Tensor) or len(batch) < 2:
        raise ValueError(
            "labels='empirical' needs batches of (x, y); got unlabelled ones: "
            "give labels, or use 'exact', 'sampled' or 'predicted'"
        )
    log_p = _log_p(output)
    try:
        return _at(log_p, batch[1])
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"labels='empirical' needs y of whole numbers from 0 to {log_p.shape[1] - 1}, shape (N,); "
            f"got {_named(batch[1])}: {error}"
        ) from error


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
        raise ValueError(
            f"the Fisher information needs logits of shape (N, classes); the model gave {_named(output)}: "
            "select them with forward="
        )
    return output.log_softmax(1)


def _at(log_p: Tensor, label: Tensor) -> Tensor:
    return log_p.gather(1, label.to(log_p.device)[:, None])[:, 0]


def _with_uniforms(batches: Iterable[Batch], generator: torch.Generator) -> Iterator[tuple[Batch, Tensor]]:
    for batch in batches:
        yield batch, torch.rand(batch_size(batch), generator=generator, dtype=torch.float64)


def _on_first_of_pair(run: Forward) -> Forward:
    return lambda model, pair: run(model, pair[0])
