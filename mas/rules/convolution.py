"""Convolution: a native weight gradient, one sample at a time, costs no more than that of a batch."""

import torch
from torch import Tensor

from mas.rules.rule import Arguments, Rule


def _weight(transposed: bool):  # type: ignore[no-untyped-def]
    def weight(g: Tensor, a: Arguments) -> Tensor:
        x, w, sides = a["input"], a["weight"].detach().to(g.dtype), a["weight"].ndim - 2
        stride, dilation = _spread(a.get("stride", 1), sides), _spread(a.get("dilation", 1), sides)
        extra = _spread(a.get("output_padding", 0), sides)
        settings = (stride, _padding(a), dilation, transposed, extra, a.get("groups", 1), (False, True, False))
        backward = torch.ops.aten.convolution_backward
        one = [backward(g[n : n + 1], x[n : n + 1], w, None, *settings)[1][None] for n in range(len(g))]
        return one[0] if len(one) == 1 else torch.cat(one)

    return weight


def _padding(a: Arguments) -> list[int]:
    sides, padding = a["weight"].ndim - 2, a.get("padding", 0)
    return [0] * sides if padding == "valid" else _spread(padding, sides)


def _spread(value: int | tuple[int, ...], sides: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * sides if len(values) == 1 else values


def channel_summed(g: Tensor) -> Tensor:
    """Sum over the axes after samples and channels."""
    return g.flatten(2).sum(2) if g.ndim > 2 else g.clone()


CONVOLUTION = Rule(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    weight=_weight(transposed=False),
    bias=lambda g, a: channel_summed(g),
    applies=lambda a: a["input"].ndim == a["weight"].ndim and a.get("padding") != "same",
)

TRANSPOSED = Rule(
    ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    weight=_weight(transposed=True),
    bias=lambda g, a: channel_summed(g),
    applies=lambda a: a["input"].ndim == a["weight"].ndim and a.get("padding") != "same",
)
