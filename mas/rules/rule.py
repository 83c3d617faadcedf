"""What the engine knows of one torch function that takes parameters.

Everywhere in this package samples come first: ``g`` is the gradient of the objective at the
function's output, ``a`` the function's arguments by name, ``a["input"]`` cut to the same samples.
Rules located by their output also find its ``a["shape"]`` and the ``a["axis"]`` of the samples in it.
A per-sample gradient has shape (n, *parameter) and is a fresh tensor, which the engine overwrites.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Arguments = dict[str, Any]
Gradient = Callable[[Tensor, Arguments], Tensor]
Part = tuple[Tensor, Arguments]


@dataclass(frozen=True)
class Rule:
    """Closed forms of one torch function.

    Attributes:
        names: the function's argument names, in their order; the parameters are called "weight"
            and "bias", the data "input".
        weight: per-sample gradient of the argument "weight".
        bias: per-sample gradient of the argument "bias".
        sample_axis_from: whose shape shows where the samples are, the "input" or the "output".
        free_axes: how many leading axes, of that one, may be the sample axis.
        applies: whether the closed forms cover these arguments.
        add_weight_moment: adds Σ_n |g_n| or Σ_n g_n² of the weight to a total without the per-sample
            gradients; tells whether these arguments allow that.
        positions: whether g and the input may have more axes between samples and features.
        join: several uses of one weight as a single one, for each sample.
        commutes: whether input and weight may change places.
        needs_input: whether the closed forms look at the input.
    """

    names: tuple[str, ...]
    weight: Gradient
    bias: Gradient = lambda g, a: g.clone()
    sample_axis_from: Literal["input", "output"] = "input"
    free_axes: Callable[[Arguments, int], int] = lambda a, ndim: 1
    applies: Callable[[Arguments], bool] = lambda a: True
    add_weight_moment: Callable[[Tensor, Tensor, Arguments, str], bool] = lambda total, g, a, moment: False
    positions: bool = False
    join: Callable[[Sequence[Part]], Part] | None = None
    commutes: bool = False
    needs_input: bool = True

    def bind(self, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
        """Name the positional arguments of a call."""
        return dict(zip(self.names, args, strict=False)) | kwargs

    def per_sample(self, role: str, g: Tensor, a: Arguments) -> Tensor:
        """Give the gradients of "weight" or "bias", one per sample."""
        return (self.weight if role == "weight" else self.bias)(g, a)

    def add_moment(self, total: Tensor, role: str, g: Tensor, a: Arguments, moment: str) -> bool:
        """Add the summed moment directly, where that is possible."""
        return role == "weight" and self.add_weight_moment(total, g, a, moment)


def power(tensor: Tensor, moment: str) -> Tensor:
    """Give |t| or t²."""
    return tensor.abs() if moment == "abs" else tensor.square()


def between_summed(g: Tensor, features: int) -> Tensor:
    """Sum over the axes between the samples and the last ``features`` axes."""
    between = tuple(range(1, g.ndim - features))
    return g.sum(between) if between else g.clone()
