"""Closed forms of one torch function that takes parameters.

Conventions of this package: ``g`` is the gradient of the objective at the function's output,
samples on axis 0. ``a`` holds the function's arguments by name; ``a["input"]`` has samples on
axis 0 and is cut to the same samples. Rules with ``sample_axis_from="output"`` also get its shape
``a["shape"]`` and the sample axis in it, ``a["axis"]``. A per-sample gradient has shape
(n, *parameter) and is a new tensor, which the engine overwrites.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Arguments = dict[str, Any]
Gradient = Callable[[Tensor, Arguments], Tensor]
AddMoment = Callable[[Tensor, Tensor, Arguments, str], bool]
Part = tuple[Tensor, Arguments]


@dataclass(frozen=True)
class Rule:
    """Closed forms of one torch function.

    Attributes:
        names: the function's argument names, in order; the parameters are called "weight"
            and "bias", the data "input".
        weight: per-sample gradient of the argument "weight".
        bias: per-sample gradient of the argument "bias".
        sample_axis_from: whose shape shows the sample axis, the "input" or the "output".
        free_axes: how many leading axes of that tensor may be the sample axis.
        applies: whether the closed forms cover these arguments.
        add_weight_moment: adds Σ_n |g_n| or Σ_n g_n² of the weight to a total without computing the
            per-sample gradients; returns False if these arguments do not allow that.
        positions: whether g and the input may have more axes between samples and features.
        folds: whether, for an output of so many axes, each element of the gradients of weight and bias is one
            element of g times a factor that does not depend on g. Then the summed moments of several g are the
            moment of one, see `folded`.
        join: merges several calls with one weight into a single one, per sample.
        commutes: whether input and weight may be swapped.
        needs_input: whether the closed forms use the input.
    """

    names: tuple[str, ...]
    weight: Gradient
    bias: Gradient = lambda g, a: g.clone()
    sample_axis_from: Literal["input", "output"] = "input"
    free_axes: Callable[[Arguments, int], int] = lambda a, ndim: 1
    applies: Callable[[Arguments], bool] = lambda a: True
    add_weight_moment: AddMoment = lambda total, g, a, moment: False
    positions: bool = False
    folds: Callable[[int, Arguments], bool] = lambda ndim, a: False
    join: Callable[[Sequence[Part]], Part] | None = None
    commutes: bool = False
    needs_input: bool = True

    def bind(self, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
        """Return the arguments of a call by name."""
        by_position = dict(zip(self.names, args, strict=False))
        return by_position | kwargs

    def per_sample(self, role: str, g: Tensor, a: Arguments) -> Tensor:
        """Return the per-sample gradients of "weight" or "bias", shape (n, *parameter)."""
        gradient = self.weight if role == "weight" else self.bias
        return gradient(g, a)

    def add_moment(self, total: Tensor, role: str, g: Tensor, a: Arguments, moment: str) -> bool:
        """Add the summed moment directly and return True, or return False if that is not possible."""
        if role != "weight":
            return False
        return self.add_weight_moment(total, g, a, moment)


def power(tensor: Tensor, moment: str) -> Tensor:
    """Return |t| for the moment "abs", t² otherwise."""
    return tensor.abs() if moment == "abs" else tensor.square()


def folded(columns: Tensor, moment: str) -> Tensor:
    """Return Σ_k |g_k|, or √(Σ_k g_k²): the g whose moment is the sum of those of ``columns``, shape (K, ...).

    >>> folded(torch.tensor([[3.0], [-4.0]]), "square")
    tensor([5.])
    """
    total = torch.zeros_like(columns[0])
    for column in columns:  # several times faster than a norm over the first axis, on a CPU
        if moment == "abs":
            total.add_(column.abs())
        else:
            total.addcmul_(column, column)
    return total if moment == "abs" else total.sqrt_()


def between_summed(g: Tensor, features: int) -> Tensor:
    """Sum over the axes between the samples and the last ``features`` axes; the result is a new tensor."""
    between = tuple(range(1, g.ndim - features))
    return g.sum(between) if between else g.clone()
