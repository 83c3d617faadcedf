"""Closed forms: the per-sample gradient of a layer's parameters from its input and output gradient.

One `Rule` for each torch function that takes parameters. Everywhere below, samples come first:
``g`` is the gradient of the objective at the function's output, ``a`` the function's arguments by
name with ``a["input"]`` cut to the same samples. A per-sample gradient has shape (n, *parameter).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """What the engine knows of one torch function.

    Attributes:
        names: the function's argument names, in their order.
        weight: per-sample gradient of the argument ``weight``.
        bias: per-sample gradient of the argument ``bias``.
        free_axes: how many leading axes of the input may be the sample axis.
        applies: whether the rule covers these arguments.
        weight_moment: Σ_n |g_n| or Σ_n g_n² of the weight without the per-sample gradients, or
            None where these arguments allow no short form.
    """

    names: tuple[str, ...]
    weight: Callable[[Tensor, Arguments], Tensor]
    bias: Callable[[Tensor, Arguments], Tensor]
    free_axes: Callable[[Arguments], int] = lambda a: 1
    applies: Callable[[Arguments], bool] = lambda a: True
    weight_moment: Callable[[Tensor, Arguments, str], Tensor | None] = lambda g, a, moment: None

    def bind(self, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
        """Name the positional arguments of a call."""
        return dict(zip(self.names, args, strict=False)) | kwargs

    def per_sample(self, role: str, g: Tensor, a: Arguments) -> Tensor:
        """Give the gradients of "weight" or "bias", one per sample."""
        return (self.weight if role == "weight" else self.bias)(g, a)

    def short_form(self, role: str, g: Tensor, a: Arguments, moment: str) -> Tensor | None:
        """Give the summed moment directly, where that is possible."""
        return self.weight_moment(g, a, moment) if role == "weight" else None


def refusal(func: Any, a: Arguments) -> str | None:
    """Say why a call has no per-sample gradient at all, or changes what is measured."""
    if func is F.batch_norm and a.get("training"):
        return (
            "batch statistics mix the samples of a batch; "
            "use running statistics (track_running_stats=True, eval mode), GroupNorm or LayerNorm"
        )
    if func is F.embedding and a.get("max_norm") is not None:
        return "max_norm rewrites the weights while they are measured; normalise them beforehand and set max_norm=None"
    return None


def _power(tensor: Tensor, moment: str) -> Tensor:
    return tensor.abs() if moment == "abs" else tensor.square()


# Linear: y = x Wᵀ + b on the last axis; any axes between the samples and it are summed over.


def _linear_weight(g: Tensor, a: Arguments) -> Tensor:
    x = a["input"].to(g.dtype)
    return torch.bmm(g.flatten(1, -2).mT, x.flatten(1, -2)) if g.ndim > 2 else g[:, :, None] * x[:, None, :]


def _linear_bias(g: Tensor, a: Arguments) -> Tensor:
    return g.flatten(1, -2).sum(1) if g.ndim > 2 else g


def _linear_moment(g: Tensor, a: Arguments, moment: str) -> Tensor | None:
    """Rank one per sample, |g_n x_nᵀ| = |g_n| |x_n|ᵀ: one matrix product for the whole batch."""
    if g.ndim != 2:
        return None
    return _power(g, moment).mT @ _power(a["input"].to(g.dtype), moment)


# Convolution: a native weight gradient, one sample at a time.


def _padding(a: Arguments) -> list[int] | None:
    """Give the symmetric padding on each side, or None where it is not symmetric."""
    sides, padding = a["weight"].ndim - 2, a.get("padding", 0)
    if padding == "valid":
        return [0] * sides
    if padding == "same":
        spans = [d * (k - 1) for d, k in zip(_spread(a.get("dilation", 1), sides), a["weight"].shape[2:], strict=True)]
        return None if any(span % 2 for span in spans) else [span // 2 for span in spans]
    return _spread(padding, sides)


def _spread(value: int | tuple[int, ...], sides: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * sides if len(values) == 1 else values


def _convolution_weight(g: Tensor, a: Arguments) -> Tensor:
    x, w, sides = a["input"].to(g.dtype), a["weight"].detach().to(g.dtype), a["weight"].ndim - 2
    stride, dilation = _spread(a.get("stride", 1), sides), _spread(a.get("dilation", 1), sides)
    settings = (stride, _padding(a), dilation, False, [0] * sides, a.get("groups", 1))
    backward = torch.ops.aten.convolution_backward
    only_weight = (False, True, False)
    return torch.cat(
        [backward(g[n : n + 1], x[n : n + 1], w, None, *settings, only_weight)[1][None] for n in range(len(g))]
    )


def _channel_bias(g: Tensor, a: Arguments) -> Tensor:
    return g.flatten(2).sum(2) if g.ndim > 2 else g


# Normalisation: y = x̂ w + b, with x̂ what the same function gives without w and b.


def _channel_weight(function: Callable[..., Tensor]) -> Callable[[Tensor, Arguments], Tensor]:
    def weight(g: Tensor, a: Arguments) -> Tensor:
        return _channel_bias(g * function(**a | {"weight": None, "bias": None}), a)

    return weight


def _layer_norm_weight(g: Tensor, a: Arguments) -> Tensor:
    return _layer_norm_bias(g * F.layer_norm(**a | {"weight": None, "bias": None}), a)


def _layer_norm_bias(g: Tensor, a: Arguments) -> Tensor:
    between = g.ndim - 1 - len(a["normalized_shape"])
    return g.flatten(1, between).sum(1) if between > 0 else g


# Embedding: row w of the weight collects the output gradients of the places that hold word w.


def _places(g: Tensor, a: Arguments) -> tuple[Tensor, Tensor]:
    """Give (sample, word) pairs as one number each, and their output gradients."""
    words, width = a["input"].flatten(1), len(a["weight"])
    keys = (torch.arange(len(words), device=words.device)[:, None] * width + words).flatten()
    g = g.reshape(len(keys), -1)
    padding = a.get("padding_idx")
    if padding is not None:
        g = g * (words.flatten() != padding % width)[:, None]
    return keys, g


def _embedding_weight(g: Tensor, a: Arguments) -> Tensor:
    keys, places = _places(g, a)
    rows = places.new_zeros(len(g) * len(a["weight"]), places.shape[1]).index_add_(0, keys, places)
    return rows.reshape(len(g), *a["weight"].shape)


def _embedding_moment(g: Tensor, a: Arguments, moment: str) -> Tensor:
    """Sum equal words within a sample, then take the moment: no tensor of samples x vocabulary."""
    keys, places = _places(g, a)
    distinct, position = keys.unique(return_inverse=True)
    sums = places.new_zeros(len(distinct), places.shape[1]).index_add_(0, position, places)
    total = places.new_zeros(a["weight"].shape)
    return total.index_add_(0, distinct % len(a["weight"]), _power(sums, moment))


_CONVOLUTION = Rule(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    weight=_convolution_weight,
    bias=_channel_bias,
    applies=lambda a: a["input"].ndim == a["weight"].ndim and _padding(a) is not None,
)

RULES: dict[Any, Rule] = {
    F.linear: Rule(
        ("input", "weight", "bias"),
        weight=_linear_weight,
        bias=_linear_bias,
        free_axes=lambda a: a["input"].ndim - 1,
        weight_moment=_linear_moment,
    ),
    F.conv1d: _CONVOLUTION,
    F.conv2d: _CONVOLUTION,
    F.conv3d: _CONVOLUTION,
    F.batch_norm: Rule(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        weight=_channel_weight(F.batch_norm),
        bias=_channel_bias,
    ),
    F.group_norm: Rule(
        ("input", "num_groups", "weight", "bias", "eps"),
        weight=_channel_weight(F.group_norm),
        bias=_channel_bias,
    ),
    F.layer_norm: Rule(
        ("input", "normalized_shape", "weight", "bias", "eps"),
        weight=_layer_norm_weight,
        bias=_layer_norm_bias,
        free_axes=lambda a: a["input"].ndim - len(a["normalized_shape"]),
    ),
    F.embedding: Rule(
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        weight=_embedding_weight,
        bias=lambda g, a: g,
        free_axes=lambda a: a["input"].ndim,
        applies=lambda a: not a.get("scale_grad_by_freq") and not a.get("sparse"),
        weight_moment=_embedding_moment,
    ),
}
