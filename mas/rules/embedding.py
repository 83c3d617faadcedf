"""Embedding: row w of the weight collects the output gradients of the places that hold word w."""

import torch
from torch import Tensor

from mas.rules.rule import Arguments, Rule, power


def _places(g: Tensor, a: Arguments) -> tuple[Tensor, Tensor]:
    """Give (sample, word) pairs as one number each, and their output gradients."""
    words, width = a["input"].reshape(len(g), -1), len(a["weight"])
    keys = (torch.arange(len(words), device=words.device)[:, None] * width + words).flatten()
    g = g.reshape(len(keys), -1)
    padding = a.get("padding_idx")
    if padding is not None:
        g = g * (words.flatten() != padding % width)[:, None]
    return keys, g


def _weight(g: Tensor, a: Arguments) -> Tensor:
    keys, places = _places(g, a)
    rows = places.new_zeros(len(g) * len(a["weight"]), places.shape[1]).index_add_(0, keys, places)
    return rows.reshape(len(g), *a["weight"].shape)


def _add_moment(total: Tensor, g: Tensor, a: Arguments, moment: str) -> bool:
    """Sum equal words within a sample, then take the moment: no tensor of samples x vocabulary."""
    keys, places = _places(g, a)
    distinct, position = keys.unique(return_inverse=True)
    sums = places.new_zeros(len(distinct), places.shape[1]).index_add_(0, position, places)
    total.index_add_(0, distinct % len(a["weight"]), power(sums, moment))
    return True


EMBEDDING = Rule(
    ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    weight=_weight,
    free_axes=lambda a, ndim: ndim,
    applies=lambda a: not a.get("scale_grad_by_freq") and not a.get("sparse"),
    add_weight_moment=_add_moment,
    positions=True,
)
