"""The slow, obviously right references: one sample at a time, plain autograd, nothing clever."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mas.batches import run_forward

POWERS: dict[str, Callable[[Tensor], Tensor]] = {"abs": torch.abs, "square": torch.square}


def one_sample(batch, n):
    """Return sample n of a batch as a batch of one."""
    return tree_map(lambda leaf: leaf[n : n + 1], batch)


def moments_by_loop(model: nn.Module, batch, objective, moment: str, forward=None) -> dict[str, Tensor]:
    """Σ_n |g_n| or Σ_n g_n², g_n by a backward pass of its own for every sample and objective column."""
    forward = forward or run_forward
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    size = len(batch if isinstance(batch, Tensor) else batch[0])
    for n in range(size):
        one = one_sample(batch, n)
        for value in objective(forward(model, one), one).flatten():
            for p in model.parameters():
                p.grad = None
            value.backward(retain_graph=True)
            for name in total:
                gradient = dict(model.named_parameters())[name].grad
                if gradient is not None:
                    total[name] += POWERS[moment](gradient)
    for p in model.parameters():
        p.grad = None
    return total


def mas_by_loop(model, batch, norm="squared_l2", forward=None):
    """Aljundi 2018, written out: the mean over samples of |∂‖F‖²/∂θ|, or of |∂‖F‖/∂θ|."""
    exponent = {"squared_l2": 1.0, "l2": 0.5}[norm]
    sums = moments_by_loop(model, batch, lambda out, b: out.flatten(1).pow(2).sum(1).pow(exponent), "abs", forward)
    return {name: value / len(batch if isinstance(batch, Tensor) else batch[0]) for name, value in sums.items()}


def fisher_by_loop(model, batch, labels, forward=None):
    """Kirkpatrick 2017, written out: Σ_n Σ_c weight(c|x_n) (∂ log p(c|x_n) / ∂θ)² / N."""
    forward = forward or run_forward
    x = batch if isinstance(batch, Tensor) else batch[0]
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for n in range(len(x)):
        one = one_sample(batch, n)
        p = forward(model, one).softmax(1)[0].detach()
        weights = {
            "exact": p,
            "empirical": torch.eye(len(p))[one[1][0]].to(p) if labels == "empirical" else None,
            "predicted": torch.eye(len(p))[p.argmax()].to(p),
        }[labels]
        for c in range(len(p)):
            squares = moments_by_loop(model, one, lambda out, b, c=c: out.softmax(1)[:, c].log(), "square", forward)
            for name in total:
                total[name] += weights[c] * squares[name] / len(x)
    return total


ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid)


def local_mas_by_loop(model: nn.Sequential, batch):
    """Aljundi 2018, l-MAS, written out: each layer of a chain by itself, with its activation, sample by sample."""
    parts = [part for part in model.modules() if not isinstance(part, nn.Sequential)]
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for n in range(len(batch)):
        x = batch[n : n + 1]
        for layer, after in zip(parts, [*parts[1:], nn.Identity()], strict=True):
            y = layer(x)
            own = list(layer.parameters())
            if own:
                output = type(after)()(y) if isinstance(after, ACTIVATIONS) else y
                for p, g in zip(own, torch.autograd.grad(output.square().sum(), own, retain_graph=True), strict=True):
                    total[names[id(p)]] += g.abs() / len(batch)
            x = y.detach()
    return total
