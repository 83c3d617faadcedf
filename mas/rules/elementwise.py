"""Parameters used elementwise: added (position embedding), multiplied (LayerScale), expanded (class token), PReLU."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mas.rules.convolution import channel_summed
from mas.rules.rule import Arguments, Gradient, Rule


def _summed(g: Tensor, a: Arguments) -> Tensor:
    """Undo broadcasting: sum g over the axes along which the weight was broadcast."""
    shape = a["weight"].shape
    aligned = [1] * (g.ndim - len(shape)) + list(shape)
    del aligned[a["axis"]]  # the sample axis: the weight is broadcast along it
    sizes = zip(aligned, g.shape[1:], strict=True)
    broadcast = [axis for axis, (own, size) in enumerate(sizes, 1) if own != size]
    summed = g.sum(broadcast) if broadcast else g.clone()
    return summed.reshape(len(g), *shape)


def _broadcast_along_samples(a: Arguments) -> bool:
    """Return whether the weight is broadcast along the sample axis of the output."""
    shape = a["weight"].shape
    missing_axes = len(a["shape"]) - len(shape)
    axis = a["axis"] - missing_axes
    return axis < 0 or shape[axis] == 1


def _has_only_operands(a: Arguments) -> bool:
    return a.keys() <= {"input", "weight", "axis", "shape"}  # no alpha=, no out=


def _same_axes(a: Arguments) -> bool:
    return isinstance(a["input"], Tensor) and a["input"].ndim == len(a["shape"])


def _repeats_samples_only(a: Arguments) -> bool:
    samples = a["shape"][a["axis"]]
    return math.prod(a["shape"]) == a["weight"].numel() * samples


def _rule(weight: Gradient, *conditions: Callable[[Arguments], bool], **more: Any) -> Rule:
    """Return the rule of a function whose output shows the sample axis, under all of the conditions."""

    def applies(a: Arguments) -> bool:
        return _broadcast_along_samples(a) and all(condition(a) for condition in conditions)

    return Rule(
        weight=weight,
        sample_axis_from="output",
        free_axes=lambda a, ndim: ndim,
        applies=applies,
        **more,
    )


_BINARY: dict[str, Any] = {"names": ("input", "weight"), "commutes": True}

ADD = _rule(_summed, _has_only_operands, needs_input=False, **_BINARY)
MULTIPLY = _rule(lambda g, a: _summed(g * a["input"], a), _has_only_operands, _same_axes, **_BINARY)
EXPAND = _rule(_summed, needs_input=False, names=("weight",))
REPEAT = _rule(_summed, _repeats_samples_only, needs_input=False, names=("weight",))


def _prelu(g: Tensor, a: Arguments) -> Tensor:
    negative = a["input"].clamp(max=0)
    per_channel = channel_summed(g * negative)
    if a["weight"].numel() == 1:
        return per_channel.sum(1, keepdim=True)
    return per_channel


PRELU = Rule(("input", "weight"), weight=_prelu, applies=lambda a: a["input"].ndim > 1)
