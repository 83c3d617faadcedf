"""Normalisation: y = x̂ w + b, with x̂ what the same function gives without w and b."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mas.rules.convolution import channel_summed
from mas.rules.rule import Arguments, Gradient, Rule, between_summed


def _per_channel(names: tuple[str, ...], function: Callable[..., Tensor]) -> Rule:
    """Make the rule of a function with one weight and bias a channel, the second axis."""
    return Rule(
        names,
        weight=lambda g, a: channel_summed(g * _plain(function, a)),
        bias=lambda g, a: channel_summed(g),
    )


def _per_feature(names: tuple[str, ...], function: Callable[..., Tensor]) -> Rule:
    """Make the rule of a function with a weight and bias for each of the last axes."""

    def summed(times: Callable[[Arguments], Tensor | float]) -> Gradient:
        return lambda g, a: between_summed(g * times(a), len(a["normalized_shape"]))

    return Rule(
        names,
        weight=summed(lambda a: _plain(function, a)),
        bias=summed(lambda a: 1.0),
        free_axes=lambda a, ndim: ndim - len(a["normalized_shape"]),
        positions=True,
    )


def _plain(function: Callable[..., Tensor], a: Arguments) -> Tensor:
    return function(**{name: None if name in ("weight", "bias") else value for name, value in a.items()})


def _instance_norm(use_input_stats: bool = True, **a: object) -> Tensor:
    """Give x̂ without a second update of running statistics."""
    if use_input_stats:
        a |= {"running_mean": None, "running_var": None}
    return F.instance_norm(use_input_stats=use_input_stats, **a)  # type: ignore[arg-type]


BATCH_NORM = _per_channel(
    ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"), F.batch_norm
)
INSTANCE_NORM = _per_channel(
    ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"), _instance_norm
)
GROUP_NORM = _per_channel(("input", "num_groups", "weight", "bias", "eps"), F.group_norm)
LAYER_NORM = _per_feature(("input", "normalized_shape", "weight", "bias", "eps"), F.layer_norm)
RMS_NORM = _per_feature(("input", "normalized_shape", "weight", "eps"), F.rms_norm)
