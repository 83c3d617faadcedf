"""Free parameters: added (position embedding), multiplied (LayerScale), expanded (class token), PReLU."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mas.rules.convolution import channel_summed
from mas.rules.rule import Arguments, Gradient, Rule


def _summed(g: Tensor, a: Arguments) -> Tensor:
    """Undo broadcasting: sum g over the axes along which the weight was spread."""
    aligned = [1] * (g.ndim - a["weight"].ndim) + list(a["weight"].shape)
    del aligned[a["axis"]]  # the samples' own: the weight is spread along it
    spread = [i for i, (w, n) in enumerate(zip(aligned, g.shape[1:], strict=True), 1) if w != n]
    return (g.sum(spread) if spread else g.clone()).reshape(len(g), *a["weight"].shape)


def _spread_along_samples(a: Arguments) -> bool:
    """Tell whether the weight has no extent of its own along the sample axis of the output."""
    place = a["axis"] - (len(a["shape"]) - a["weight"].ndim)
    return place < 0 or a["weight"].shape[place] == 1


def _plain(a: Arguments) -> bool:
    return a.keys() <= {"input", "weight", "axis", "shape"}  # no alpha=, no out=


def _same_axes(a: Arguments) -> bool:
    return isinstance(a["input"], Tensor) and a["input"].ndim == len(a["shape"])


def _repeats_samples_only(a: Arguments) -> bool:
    return math.prod(a["shape"]) == a["weight"].numel() * a["shape"][a["axis"]]


def _rule(weight: Gradient, *conditions: Callable[[Arguments], bool], **more: Any) -> Rule:
    return Rule(
        weight=weight,
        sample_axis_from="output",
        free_axes=lambda a, ndim: ndim,
        applies=lambda a: all(condition(a) for condition in (_spread_along_samples, *conditions)),
        **more,
    )


_TWO: dict[str, Any] = {"names": ("input", "weight"), "commutes": True}

ADD = _rule(_summed, _plain, needs_input=False, **_TWO)
MULTIPLY = _rule(lambda g, a: _summed(g * a["input"], a), _plain, _same_axes, **_TWO)
EXPAND = _rule(_summed, needs_input=False, names=("weight",))
REPEAT = _rule(_summed, _repeats_samples_only, needs_input=False, names=("weight",))


def _prelu(g: Tensor, a: Arguments) -> Tensor:
    per_channel = channel_summed(g * a["input"].clamp(max=0))
    return per_channel.sum(1, keepdim=True) if a["weight"].numel() == 1 else per_channel


PRELU = Rule(("input", "weight"), weight=_prelu, applies=lambda a: a["input"].ndim > 1)
