"""Passes over data that need nothing but torch: the plain one, and per-sample gradients as one would write them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Data = list[tuple[Tensor, Tensor]]
Importance = dict[str, Tensor]


def plain(model: nn.Module, data: Data) -> None:
    """Do what every training step does, and nothing else."""
    for x, y in data:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()


def squared(out: Tensor, _: Tensor) -> Tensor:
    """Return the squared norm of the output, summed over samples."""
    return out.square().sum()


def nll(out: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy, summed over samples."""
    return F.cross_entropy(out, y, reduction="sum")


def single_loop(
    model: nn.Module, data: Data, objective: Callable[..., Tensor], power: Callable[[Tensor], Tensor]
) -> Importance:
    """A backward pass for every sample."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for x, y in data:
        for n in range(len(x)):
            model.zero_grad()
            objective(model(x[n : n + 1]), y[n : n + 1]).backward()
            for name, p in model.named_parameters():
                assert p.grad is not None  # noqa: S101 - for mypy
                total[name] += power(p.grad)
    return mean(total, data)


def vmap_grad(model: nn.Module, data: Data) -> Importance:
    """torch.func as its tutorial on per-sample gradients has it."""
    params = {n: p.detach() for n, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def objective(weights: Importance, x: Tensor) -> Tensor:
        return torch.func.functional_call(model, (weights, buffers), (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(objective), in_dims=(None, 0))
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    for x, _ in data:
        for name, g in each(params, x).items():
            total[name] += g.abs().sum(0)
    return mean(total, data)


def mean(total: Importance, data: Data) -> Importance:
    """Return sums over samples, divided by their number."""
    n = sum(len(x) for x, _ in data)
    return {name: t / n for name, t in total.items()}
