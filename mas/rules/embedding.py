"""Embedding: row w of the weight collects the output gradients of the positions that hold word w."""

import torch
from torch import Tensor

from mas.rules.rule import Arguments, Rule, power


def _pairs(g: Tensor, a: Arguments) -> tuple[Tensor, Tensor]:
    """Return each position's (sample, word) pair, coded as one number, and its output gradient."""
    n = len(g)
    vocabulary = len(a["weight"])
    words = a["input"].reshape(n, -1)
    samples = torch.arange(len(words), device=words.device)[:, None]
    codes = (samples * vocabulary + words).flatten()
    gradients = g.reshape(len(codes), -1)
    padding = a.get("padding_idx")
    if padding is not None:
        is_word = words.flatten() != padding % vocabulary
        gradients = gradients * is_word[:, None]
    return codes, gradients


def _weight(g: Tensor, a: Arguments) -> Tensor:
    codes, gradients = _pairs(g, a)
    weight = a["weight"]
    rows = gradients.new_zeros(len(g) * len(weight), gradients.shape[1])
    rows.index_add_(0, codes, gradients)
    return rows.reshape(len(g), *weight.shape)


def _add_moment(total: Tensor, g: Tensor, a: Arguments, moment: str) -> bool:
    """Sum equal words within a sample, then add the moment: no tensor of samples × vocabulary is made."""
    codes, gradients = _pairs(g, a)
    distinct, position = codes.unique(return_inverse=True)
    sums = gradients.new_zeros(len(distinct), gradients.shape[1])
    sums.index_add_(0, position, gradients)
    words = distinct % len(a["weight"])
    total.index_add_(0, words, power(sums, moment))
    return True


EMBEDDING = Rule(
    ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    weight=_weight,
    free_axes=lambda a, ndim: ndim,
    applies=lambda a: not a.get("scale_grad_by_freq") and not a.get("sparse"),
    add_weight_moment=_add_moment,
    positions=True,
)
