"""Convolution: the native weight gradient for one sample at a time costs no more than that of a batch."""

import torch
from torch import Tensor

from mas.rules.rule import Arguments, Gradient, Rule

_WEIGHT_ONLY = (False, True, False)  # which gradients to compute: of the input, the weight, the bias


def _weight(transposed: bool) -> Gradient:
    """Return the per-sample weight gradient of a convolution or of a transposed one."""

    def weight(g: Tensor, a: Arguments) -> Tensor:
        x = a["input"]
        w = a["weight"].detach().to(g.dtype)
        dims = a["weight"].ndim - 2
        settings = (
            _per_dim(a.get("stride", 1), dims),
            _padding(a, dims),
            _per_dim(a.get("dilation", 1), dims),
            transposed,
            _per_dim(a.get("output_padding", 0), dims),
            a.get("groups", 1),
            _WEIGHT_ONLY,
        )
        backward = torch.ops.aten.convolution_backward
        gradients = []
        for n in range(len(g)):
            sample = slice(n, n + 1)
            _, gradient, _ = backward(g[sample], x[sample], w, None, *settings)
            gradients.append(gradient[None])
        return gradients[0] if len(gradients) == 1 else torch.cat(gradients)

    return weight


def _padding(a: Arguments, dims: int) -> list[int]:
    padding = a.get("padding", 0)
    if padding == "valid":
        return [0] * dims
    return _per_dim(padding, dims)


def _per_dim(value: int | tuple[int, ...], dims: int) -> list[int]:
    """Return one value for each spatial dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _applies(a: Arguments) -> bool:
    return a["input"].ndim == a["weight"].ndim and a.get("padding") != "same"


def channel_summed(g: Tensor) -> Tensor:
    """Sum over the axes after samples and channels; the result, of shape (n, channels), is a new tensor."""
    return g.flatten(2).sum(2) if g.ndim > 2 else g.clone()


CONVOLUTION = Rule(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    weight=_weight(transposed=False),
    bias=lambda g, a: channel_summed(g),
    applies=_applies,
)

TRANSPOSED = Rule(
    ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    weight=_weight(transposed=True),
    bias=lambda g, a: channel_summed(g),
    applies=_applies,
)
