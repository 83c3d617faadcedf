"""Normalisation: y = x̂ w + b, with x̂ the output of the same function without w and b."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mas.rules.convolution import channel_summed
from mas.rules.rule import Arguments, Rule, between_summed


def _per_channel(names: tuple[str, ...], function: Callable[..., Tensor]) -> Rule:
    """Return the rule of a function with one weight and bias per channel; channels are on axis 1."""
    return Rule(
        names,
        weight=lambda g, a: channel_summed(g * _normalized(function, a)),
        bias=lambda g, a: channel_summed(g),
        folds=lambda ndim, a: ndim == 2,
    )


def _per_feature(names: tuple[str, ...], function: Callable[..., Tensor]) -> Rule:
    """Return the rule of a function whose weight and bias have the shape of the last axes."""

    def weight(g: Tensor, a: Arguments) -> Tensor:
        return between_summed(g * _normalized(function, a), len(a["normalized_shape"]))

    def bias(g: Tensor, a: Arguments) -> Tensor:
        return between_summed(g * 1.0, len(a["normalized_shape"]))

    return Rule(
        names,
        weight=weight,
        bias=bias,
        free_axes=lambda a, ndim: ndim - len(a["normalized_shape"]),
        positions=True,
        folds=lambda ndim, a: ndim == 1 + len(a["normalized_shape"]),
    )


def _normalized(function: Callable[..., Tensor], a: Arguments) -> Tensor:
    """Return x̂: the function's output without weight and bias."""
    without_parameters = a | dict.fromkeys(a.keys() & {"weight", "bias"})
    return function(**without_parameters)


def _instance_norm(use_input_stats: bool = True, **a: object) -> Tensor:
    """Return x̂ without updating the running statistics a second time."""
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
