"""The filters of a probe: the rows of its weights, which the parts of an embedding belong to."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd


@dataclass(frozen=True)
class Filters:
    """Which axis of each weight counts its filters.

    Attributes:
        axes: axis by the weight's name, in the order in which filters are numbered.
    """

    axes: dict[str, int]

    def mean(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of values of the weights' shapes over each filter, shape (filters,), float64, on the CPU."""
        means = [values[name].double().movedim(axis, 0).flatten(1).mean(1) for name, axis in self.axes.items()]
        return torch.cat([mean.cpu() for mean in means])

    def shaped(self, name: str, values: Tensor, weight: Tensor) -> Tensor:
        """Return one value per filter of a weight, shape (filters of it,), in a shape that broadcasts over it."""
        shape = [1] * weight.ndim
        shape[self.axes[name]] = -1
        return values.reshape(shape)


def filters_of(model: nn.Module, head: str) -> Filters:
    """Return the filters before a head; freeze every other parameter of ``model``: biases, normalisation, the head."""
    axes = {}
    for name, parameter in model.named_parameters():
        is_filter = parameter.ndim >= 2 and not name.startswith(f"{head}.")
        parameter.requires_grad_(is_filter)
        if is_filter:
            axes[name] = _filter_axis(model, name)
    if not axes:
        raise ValueError("the probe has no weights before its head; there is nothing to embed in")
    return Filters(axes)


def prior_variance(model: nn.Module, filters: Filters) -> Tensor:
    """Return λ², the mean square of the weights of each filter's layer, shape (filters,), float64, on the CPU.

    Raises:
        ValueError: a layer has weights of 0 only: its prior has no width.
    """
    parts = []
    for name, axis in filters.axes.items():
        weight = model.get_parameter(name).detach()
        mean_square = float(weight.double().square().mean())
        if mean_square == 0:
            raise ValueError(f"{name} is 0 everywhere, which leaves its prior no width; give a trained probe")
        parts.append(torch.full((weight.shape[axis],), mean_square, dtype=torch.float64))
    return torch.cat(parts)


def _filter_axis(model: nn.Module, name: str) -> int:
    owner = model.get_submodule(name.rpartition(".")[0])
    return 1 if isinstance(owner, _ConvTransposeNd) else 0  # there the first axis counts inputs
