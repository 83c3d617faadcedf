"""Linear: y = x Wᵀ + b on the last axis; any axes between the samples and it are summed over."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mas.rules.rule import Arguments, Part, Rule, between_summed, power


def _weight(g: Tensor, a: Arguments) -> Tensor:
    x = a["input"]
    return torch.bmm(g.flatten(1, -2).mT, x.flatten(1, -2)) if g.ndim > 2 else g[:, :, None] * x[:, None, :]


def _add_moment(total: Tensor, g: Tensor, a: Arguments, moment: str) -> bool:
    """Rank one per sample, |g_n x_nᵀ| = |g_n| |x_n|ᵀ: one matrix product for the whole batch."""
    if g.ndim == 2:
        total.addmm_(power(g, moment).mT, power(a["input"], moment))
    return g.ndim == 2


def _join(parts: Sequence[Part]) -> Part:
    """Put the uses of one weight, such as the steps of a recurrent layer, one after another as positions."""
    g = torch.cat([g.reshape(len(g), -1, g.shape[-1]) for g, _ in parts], 1)
    x = torch.cat([a["input"].reshape(len(g), -1, a["input"].shape[-1]) for _, a in parts], 1)
    return g, parts[0][1] | {"input": x}


LINEAR = Rule(
    ("input", "weight", "bias"),
    weight=_weight,
    bias=lambda g, a: between_summed(g, 1),
    free_axes=lambda a, ndim: ndim - 1,
    add_weight_moment=_add_moment,
    positions=True,
    join=_join,
)

# x @ W is linear with Wᵀ.
MATMUL = Rule(
    ("input", "weight"),
    weight=lambda g, a: _weight(g, a).mT,
    free_axes=lambda a, ndim: ndim - 1,
    applies=lambda a: a["weight"].ndim == 2 and a["input"].ndim > 1,
    positions=True,
)
