"""Checks that a network has not diverged: each raises FloatingPointError for a value that is not finite."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from mas.state import named_parameters

_DIVERGED = "the network has diverged"


def check_finite(values: Tensor, what: str) -> None:
    """Raise FloatingPointError if one of ``values`` is NaN or infinite; ``what`` names them in the message."""
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError(f"{what} has values that are not finite; {_DIVERGED}")


def check_weights(model: nn.Module) -> None:
    """Raise FloatingPointError if a parameter of ``model`` has a value that is NaN or infinite."""
    for name, p in named_parameters(model).items():
        if not is_lazy(p):  # a lazy parameter has no values yet
            check_finite(p.detach(), f"parameter {name!r}")


def check_output(output: Any, cause: str = _DIVERGED) -> None:
    """Raise FloatingPointError if a model's output is not finite.

    Every sample needs a finite greatest value and no NaN, in each tensor of the output. So -inf is
    accepted for some outputs of a sample, as in a mask of classes, but not for all of them.

    Args:
        output: any nest of tensors, samples on axis 0.
        cause: the probable cause, the end of the message.
    """
    for leaf in tree_leaves(output):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.numel():
            continue
        samples = len(leaf) if leaf.ndim else 1
        greatest = leaf.detach().reshape(samples, -1).amax(1)  # NaN if one value is NaN
        if not bool(torch.isfinite(greatest).all()):
            raise FloatingPointError(f"the network's output is not finite; {cause}")
