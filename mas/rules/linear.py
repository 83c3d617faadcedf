"""Linear: y = x Wᵀ + b on the last axis; any axes between the samples and it are summed over."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mas.rules.rule import Arguments, Part, Rule, between_summed, power


def _weight(g: Tensor, a: Arguments) -> Tensor:
    x = a["input"]
    if g.ndim == 2:
        return g[:, :, None] * x[:, None, :]
    g_rows = g.flatten(1, -2)  # (n, positions, out)
    x_rows = x.flatten(1, -2)  # (n, positions, in)
    return torch.bmm(g_rows.mT, x_rows)


def _add_moment(total: Tensor, g: Tensor, a: Arguments, moment: str) -> bool:
    """Add the moment of rank-one gradients, |g_n x_nᵀ| = |g_n| |x_n|ᵀ: one matrix product for the whole batch."""
    if g.ndim != 2:
        return False
    g_power = power(g, moment)
    x_power = power(a["input"], moment)
    total.addmm_(g_power.mT, x_power)
    return True


def _join(parts: Sequence[Part]) -> Part:
    """Concatenate the calls with one weight, such as the steps of a recurrent layer, along the positions."""
    g_parts = []
    x_parts = []
    for g, a in parts:
        x = a["input"]
        g_parts.append(g.reshape(len(g), -1, g.shape[-1]))
        x_parts.append(x.reshape(len(g), -1, x.shape[-1]))
    first_arguments = parts[0][1]
    x_joined = torch.cat(x_parts, 1)
    return torch.cat(g_parts, 1), first_arguments | {"input": x_joined}


LINEAR = Rule(
    ("input", "weight", "bias"),
    weight=_weight,
    bias=lambda g, a: between_summed(g, 1),
    free_axes=lambda a, ndim: ndim - 1,
    add_weight_moment=_add_moment,
    positions=True,
    folds=lambda ndim, a: ndim == 2,
    join=_join,
)

# x @ W is linear with Wᵀ.
MATMUL = Rule(
    ("input", "weight"),
    weight=lambda g, a: _weight(g, a).mT,
    free_axes=lambda a, ndim: ndim - 1,
    applies=lambda a: a["weight"].ndim == 2 and a["input"].ndim > 1,
    positions=True,
    folds=lambda ndim, a: ndim == 2,
)
