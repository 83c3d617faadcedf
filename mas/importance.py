"""Importance measures: which weights matter. Each is a few lines over `mean_moments`.

Every measure is a mean over samples of a moment of per-sample gradients, with a tensor for each
parameter that requires a gradient, and needs one pass over the data. `uniform_importance` and
`random_importance` measure nothing; they are controls.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mas.batches import Batch, Forward, batch_size, run_forward
from mas.gradients import Reduction, mean_moments, trained_parameters
from mas.state import named_parameters, preserving_state, unwrap_model

Labels = Literal["exact", "sampled", "empirical", "predicted", "hutchinson"]
Norm = Literal["squared_l2", "l2"]


def mas_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    norm: Norm = "squared_l2",
    forward: Forward | None = None,
    max_samples: int | None = None,
    max_bytes: int | None = None,
    reduction: Reduction = "sample",
) -> dict[str, Tensor]:
    """Return the importance of Memory Aware Synapses: Ω = 1/N Σ_n |∂‖F(x_n)‖² / ∂θ|.

    Args:
        model: returns the output F(x), before any softmax.
        batches: an iterable of inputs, or of tuples or lists that start with the input, such as
            a data loader of ``(x, y)``. Labels are not used.
        norm: "squared_l2" differentiates ‖F‖², "l2" differentiates ‖F‖.
        forward: ``forward(model, batch)`` returns the output; by default ``model(x)``.
        max_samples: use only this many samples, the first ones in ``batches``.
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
    return mean_moments(
        model,
        batches,
        _NORMS[norm],
        moment="abs",
        forward=forward,
        max_samples=max_samples,
        max_bytes=max_bytes,
        reduction=reduction,
    )


def fisher_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    labels: Labels = "exact",
    forward: Forward | None = None,
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
    max_bytes: int | None = None,
    reduction: Reduction = "sample",
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of a classifier, F = 1/N Σ_n E_c (∂ log p(c|x_n) / ∂θ)².

    Args:
        model: returns logits of shape (N, classes).
        batches: an iterable of ``(x, y, ...)``; labels are used only with labels="empirical".
        labels: the expectation over c. "exact": under the model's own p(c|x), one backward pass
            per class; "sampled": one draw c ~ p(c|x); "empirical": c = y; "predicted":
            c = argmax p(c|x). "hutchinson" estimates "exact" in one pass, without bias: the square
            of the gradient of Σ_c ξ_c √p(c|x) log p(c|x), with a random sign ξ_c for each sample and
            class, and √p(c|x) held constant.
        forward: ``forward(model, batch)`` returns the logits; by default ``model(x)``.
        max_samples: use only this many samples, the first ones in ``batches``.
        generator: draws the labels of "sampled" and the signs of "hutchinson", from one number per
            sample; by default a new one, seeded 0, so that equal calls return equal results.
        max_bytes, reduction: as for `mas.mean_moments`.

    Returns:
        Importance by parameter name, of the parameter's shape: a mean over samples, in nats per
        squared unit of weight.

    Raises:
        ValueError: the output is not of shape (N, classes); labels are needed and missing.
        FloatingPointError, RuntimeError: as `mas.per_sample_moments`.

    Source: Kirkpatrick et al. 2017 (EWC); the first four expectations are compared by van de Ven 2025
    (arXiv 2502.11756); random signs: Hutchinson 1990.
    """
    if labels not in _LOG_LIKELIHOODS:
        raise ValueError(f"labels is {labels!r}; known are {', '.join(map(repr, _LOG_LIKELIHOODS))}")
    if labels in DRAWN:
        batches = _with_uniforms(batches, generator or torch.Generator().manual_seed(0))
        forward = _on_first_of_pair(forward or run_forward)
    return mean_moments(
        model,
        batches,
        _LOG_LIKELIHOODS[labels],
        moment="square",
        forward=forward,
        max_samples=max_samples,
        max_bytes=max_bytes,
        reduction=reduction,
    )


def uniform_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Forward | None = None,
) -> dict[str, Tensor]:
    """Return ones; with a quadratic penalty this is L2 to the anchor, a control.

    Args:
        model, batches, forward: as for `mas_importance`. They are only used to find the parameters
            that the output depends on; for others, such as the heads of other tasks, the
            importance is 0.

    Returns:
        Importance by parameter name, of the parameter's shape.

    Raises:
        ValueError: no parameter requires a gradient, or the output depends on none; no batch.
    """
    run = forward or run_forward
    unused = trained_parameters(model)
    importance = {name: torch.zeros_like(p, requires_grad=False) for name, p in unused.items()}
    has_batches = False
    with preserving_state(model), torch.enable_grad():
        for batch in batches:
            has_batches = True
            output = run(unwrap_model(model), batch)
            for name in _used(unused, output):
                importance[name].fill_(1.0)
                del unused[name]
            if not unused:
                break
    if not has_batches:
        raise ValueError("batches gave no sample; give a data loader or a list of batches")
    if len(unused) == len(importance):
        raise ValueError(
            "the output does not depend on any parameter that requires a gradient; "
            "is it detached, or run under no_grad?"
        )
    return importance


def random_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    values: Literal["uniform", "mas"] = "uniform",
    forward: Forward | None = None,
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return random importance, the control that shows whether it matters *which* weights are protected.

    Args:
        model, batches, forward, max_samples: as for `mas_importance`.
        values: "uniform" draws from 0 to 1 wherever `uniform_importance` is not 0; "mas" permutes
            the MAS importance within each parameter, which keeps its distribution and so the
            strength of the penalty.
        generator: makes the draws, on the CPU; by default a new one, seeded 0.

    Returns:
        Importance by parameter name, of the parameter's shape.

    Raises:
        ValueError: ``values`` is neither, or as `uniform_importance` or `mas_importance`.
    """
    if values not in ("uniform", "mas"):
        raise ValueError(f"values is {values!r}; known are 'uniform', 'mas'")
    generator = generator or torch.Generator().manual_seed(0)
    importance = {}
    if values == "uniform":
        ones = uniform_importance(model, batches, forward=forward)
        for name, one in ones.items():
            importance[name] = one * torch.rand(one.shape, generator=generator).to(one)
    else:
        measured = mas_importance(model, batches, forward=forward, max_samples=max_samples)
        for name, omega in measured.items():
            order = torch.randperm(omega.numel(), generator=generator).to(omega.device)
            importance[name] = omega.flatten()[order].reshape(omega.shape)
    return importance


def last_layer(model: nn.Module, batch: Batch, *, forward: Forward | None = None) -> set[str]:
    """Return the names of the parameters of the module that is called last: the classifier, or a task's head.

    >>> sorted(last_layer(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.ones(1, 2)))
    ['2.bias', '2.weight']
    """
    run = forward or run_forward
    called: list[nn.Module] = []
    hooks = []
    with preserving_state(model), torch.no_grad():
        inner = unwrap_model(model)
        for module in inner.modules():
            if any(True for _ in module.parameters(recurse=False)):
                hooks.append(module.register_forward_hook(lambda module, *_: called.append(module)))
        try:
            run(inner, batch)
        finally:
            for hook in hooks:
                hook.remove()
    if not called:
        return set()
    last = {id(p) for p in called[-1].parameters(recurse=False)}
    return {name for name, p in named_parameters(model).items() if id(p) in last}


def _used(params: dict[str, nn.Parameter], output: Any) -> list[str]:
    """Return the names of the parameters that an output depends on."""
    sums = [leaf.sum() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not sums:
        return []
    gradients = torch.autograd.grad(sums, list(params.values()), allow_unused=True)
    return [name for name, gradient in zip(params, gradients, strict=True) if gradient is not None]


def _squared_l2(output: Tensor, batch: Batch) -> Tensor:
    return _flat(output).square().sum(1)


def _l2(output: Tensor, batch: Batch) -> Tensor:
    return torch.linalg.vector_norm(_flat(output), dim=1)  # its gradient at F = 0 is 0


def _flat(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim == 0:
        raise ValueError(
            f"MAS needs an output of shape (N, ...); the model gave {_described(output)}: select it with forward="
        )
    return output.reshape(len(output), -1)


def _described(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


_NORMS: dict[str, Callable[[Tensor, Batch], Tensor]] = {"squared_l2": _squared_l2, "l2": _l2}


def _exact(output: Tensor, batch: Batch) -> Tensor:
    """Return √p(c|x) log p(c|x), shape (N, C): its squared gradients are p(c|x) (∂ log p(c|x))²."""
    log_p = _log_p(output)
    root_p = log_p.detach().mul(0.5).exp()
    masked_log_p = torch.where(root_p > 0, log_p, 0.0)  # a masked class, p = 0, contributes nothing
    return root_p * masked_log_p


def _empirical(output: Tensor, batch: Batch) -> Tensor:
    if isinstance(batch, Tensor) or len(batch) < 2:
        raise ValueError(
            "labels='empirical' needs batches of (x, y); got unlabelled ones: "
            "give labels, or use 'exact', 'sampled' or 'predicted'"
        )
    log_p = _log_p(output)
    y = batch[1]
    try:
        return _at(log_p, y)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"labels='empirical' needs y of whole numbers from 0 to {log_p.shape[1] - 1}, shape (N,); "
            f"got {_described(y)}: {error}"
        ) from error


def _predicted(output: Tensor, batch: Batch) -> Tensor:
    log_p = _log_p(output)
    return _at(log_p, log_p.argmax(1))


def _sampled(output: Tensor, batch: Batch) -> Tensor:
    """Return log p(c|x) for a draw c ~ p(c|x): the cumulative p(c|x), inverted at the sample's uniform number."""
    log_p = _log_p(output)
    uniforms = batch[1]
    cumulative = log_p.detach().double().exp().cumsum(1)
    threshold = uniforms[:, None] * cumulative[:, -1:]
    label = (cumulative < threshold).sum(1)
    last_class = log_p.shape[1] - 1
    return _at(log_p, label.clamp(max=last_class))


def _hutchinson(output: Tensor, batch: Batch) -> Tensor:
    """Return Σ_c ξ_c √p(c|x) log p(c|x): signs are independent, so that mixed terms have mean 0 in its square."""
    weighted = _exact(output, batch)
    return (_random_signs(batch[1], weighted.shape[1]).to(weighted) * weighted).sum(1)


def _random_signs(uniforms: Tensor, classes: int) -> Tensor:
    """Return signs ±1 of shape (N, classes), a function of one uniform number per sample.

    Each sign is a bit of a hash of the number and the class (the finaliser of SplitMix64), so that
    the signs of a sample do not depend on its batch.
    """
    keys = (uniforms * 2**53).to(torch.int64)
    steps = torch.arange(1, classes + 1, device=keys.device) * _GOLDEN_GAMMA
    mixed = keys[:, None] * _GOLDEN_GAMMA + steps
    for shift, factor in _MIXING:
        mixed = (mixed ^ (mixed >> shift)) * factor
    return 1 - 2 * ((mixed >> 40) & 1)


DRAWN = ("sampled", "hutchinson")
"""Values of ``labels`` that draw from a generator."""

# Constants of SplitMix64 (Steele, Lea and Flood 2014), as signed 64-bit integers.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIXING = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))

_LOG_LIKELIHOODS: dict[str, Callable[[Tensor, Batch], Tensor]] = {
    "exact": _exact,
    "sampled": _sampled,
    "empirical": _empirical,
    "predicted": _predicted,
    "hutchinson": _hutchinson,
}


def _log_p(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError(
            f"the Fisher information needs logits of shape (N, classes); the model gave {_described(output)}: "
            "select them with forward="
        )
    return output.log_softmax(1)


def _at(log_p: Tensor, label: Tensor) -> Tensor:
    """Return log p of one class per sample, shape (N,)."""
    index = label.to(log_p.device)[:, None]
    return log_p.gather(1, index)[:, 0]


def _with_uniforms(batches: Iterable[Batch], generator: torch.Generator) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each batch with a uniform random number per sample."""
    for batch in batches:
        yield batch, torch.rand(batch_size(batch), generator=generator, dtype=torch.float64)


def _on_first_of_pair(run: Forward) -> Forward:
    return lambda model, pair: run(model, pair[0])
