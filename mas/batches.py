"""Batches: what they hold, how many samples, some of them, and how a model is run on one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Batch = Any  # a tensor, or any nest of tuples, lists and dicts that holds tensors
Forward = Callable[[nn.Module, Batch], Any]


def batch_size(batch: Batch) -> int:
    """Count the samples of a batch: the length of its first tensor's first axis.

    >>> batch_size((torch.zeros(5, 2), torch.zeros(5)))
    5
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return leaf.shape[0]
    raise ValueError(f"a batch holds no tensor with a sample axis: {type(batch).__name__}")


def with_samples(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches that hold a sample; skip those of size 0.

    A batch without any tensor, such as a list of strings, counts as one with samples.

    >>> from torch import zeros
    >>> [len(batch) for batch in with_samples([zeros(2, 1), zeros(0, 1), zeros(3, 1)])]
    [2, 3]
    """
    for batch in batches:
        leaves = tree_leaves(batch)
        sizes = [len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 0]
        empty = sizes[0] == 0 if sizes else not leaves
        if not empty:
            yield batch


def run_forward(model: nn.Module, batch: Batch) -> Any:
    """Give ``model(batch)``, or ``model(batch[0])`` for a tuple or list such as ``(x, y)``."""
    if isinstance(batch, tuple | list):
        return model(batch[0])
    if isinstance(batch, Tensor):
        return model(batch)
    raise ValueError(
        f"cannot tell the input in a batch of type {type(batch).__name__}; give forward=lambda model, batch: ..."
    )


def labels_of(batch: Batch, what: str) -> Tensor:
    """Return the labels y of a batch ``(x, y, ...)``.

    Args:
        batch: a tuple or list.
        what: that needs them, for the message.

    Raises:
        ValueError: the batch has no labels.
    """
    if isinstance(batch, Tensor) or len(batch) < 2:
        raise ValueError(f"{what} needs batches of (x, y); got unlabelled ones")
    return batch[1]


def has_samples(leaf: Any, size: int) -> bool:
    """Tell whether the first axis of a part of a batch counts its ``size`` samples."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def samples(batch: Batch, index: Sequence[int] | slice, size: int) -> Batch:
    """Select samples of a batch of ``size``; whatever is not counted in samples stays as it is."""
    return tree_map(lambda leaf: leaf[index] if has_samples(leaf, size) else leaf, batch)


def first_samples(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    """Give batches until ``limit`` samples are reached, the last one cut to fit."""
    left = limit
    for batch in batches:
        size = batch_size(batch)
        yield batch if left is None or size <= left else samples(batch, slice(left), size)
        if left is not None and (left := left - size) <= 0:
            return


def chunks(size: int, limit: int, one: int) -> Iterator[slice]:
    """Cut ``size`` samples of ``one`` byte each into slices of at most ``limit`` bytes."""
    step = max(1, limit // max(one, 1))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
