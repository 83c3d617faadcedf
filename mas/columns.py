"""Moments of an objective with several numbers per sample, such as one for each class in the exact Fisher information.

The backward passes of many columns run as one batch, and the columns are summed before the product with the layer's
input: for a linear layer Σ_n Σ_k (g_nk x_nᵀ)² = (Σ_k g_nk²)ᵀ (x_n²). This is done where every layer allows it, as in an
MLP. Where weights are shared over positions, one column at a time is as fast, and takes less memory.
"""

import warnings
from collections import Counter
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from mas.batches import chunks
from mas.recording import LayerCall
from mas.summing import MomentAccumulator, refuse_overwritten

_COLUMN_BYTES = 128 * 2**20  # limit of the output gradients of all columns at a time on a CPU
_DEVICE_COLUMN_BYTES = 2**30  # the same on an accelerator


def can_fold(accumulator: MomentAccumulator, calls: Sequence[LayerCall]) -> bool:
    """Return whether `add_columns` holds: every call folds, and each parameter is used as it is, in one call alone."""
    uses = Counter(name for call in calls for names in call.names.values() for name in names)
    parameters = {id(parameter) for parameter in accumulator.params.values()}
    are_own = all(id(source) in parameters for call in calls for source in call.sources.values())
    return bool(calls) and are_own and set(uses.values()) == {1} and all(call.folds for call in calls)


def add_columns(
    accumulator: MomentAccumulator, values: Tensor, calls: Sequence[LayerCall], *, excluded: Set[str] = frozenset()
) -> None:
    """Add the moments of every column of an objective.

    Args:
        accumulator: what the moments are added to.
        values: of the objective, shape (N, K).
        calls: the recorded calls, for which `can_fold` holds.
        excluded: names of parameters to leave out.

    Raises:
        RuntimeError: the input of a call was overwritten in place.
    """
    numbers_per_column = sum(torch.Size(call.output_shape).numel() for call in calls)
    bytes_per_column = numbers_per_column * values.element_size()
    for columns in chunks(values.shape[1], _limit(accumulator, values), bytes_per_column):
        for call, gradient in zip(calls, _output_gradients(values, calls, columns), strict=True):
            if gradient is not None:  # the objective depends on this call
                refuse_overwritten(call)
                accumulator.add_folded(call, gradient, excluded)


def _limit(accumulator: MomentAccumulator, values: Tensor) -> int:
    if accumulator.max_bytes:
        return accumulator.max_bytes
    return _COLUMN_BYTES if values.device.type == "cpu" else _DEVICE_COLUMN_BYTES


def _output_gradients(values: Tensor, calls: Sequence[LayerCall], columns: slice) -> Sequence[Tensor | None]:
    """Return the gradients of some columns at each call's output, shape (K, *output); None where there is none."""
    size, number = values.shape
    one_hot = torch.eye(number, dtype=values.dtype, device=values.device)[columns]
    of_values = one_hot[:, None, :].expand(-1, size, -1)
    edges = [call.edge for call in calls if call.edge is not None]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            return torch.autograd.grad(
                values, edges, of_values, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
    except RuntimeError:  # an operation has no batched backward
        each = [torch.autograd.grad(values, edges, g, retain_graph=True, allow_unused=True) for g in of_values]
        return [_stacked(of_call) for of_call in zip(*each, strict=True)]


def _stacked(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Return gradients of several columns as one tensor; None if the objective does not depend on the call."""
    given = [gradient for gradient in gradients if gradient is not None]
    return torch.stack(given) if given else None
