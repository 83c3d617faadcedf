"""Batches: count their samples, select some of them, run a model on one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Batch = Any  # a tensor, or any nest of tuples, lists and dicts that holds tensors
Forward = Callable[[nn.Module, Batch], Any]


def batch_size(batch: Batch) -> int:
    """Return the number of samples in a batch: the length of its first tensor's first axis.

    Raises:
        ValueError: the batch holds no tensor with an axis.

    >>> from torch import zeros
    >>> batch_size((zeros(5, 2), zeros(5)))
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
        if not _is_empty(batch):
            yield batch


def _is_empty(batch: Batch) -> bool:
    leaves = tree_leaves(batch)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return len(leaf) == 0
    return not leaves


def run_forward(model: nn.Module, batch: Batch) -> Any:
    """Return ``model(batch)``, or ``model(batch[0])`` for a tuple or list such as ``(x, y)``.

    Raises:
        ValueError: the batch is neither a tensor nor a tuple or list.
    """
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
        what: the measure that needs the labels, for the message.

    Raises:
        ValueError: the batch has no labels.
    """
    if isinstance(batch, Tensor) or len(batch) < 2:
        raise ValueError(f"{what} needs batches of (x, y); got unlabelled ones")
    return batch[1]


def count_correct(output: Tensor, labels: Tensor) -> int:
    """Return how many samples have their greatest output at their label.

    Args:
        output: of shape (N, classes).
        labels: whole numbers, of shape (N,), on any device.

    >>> from torch import tensor
    >>> count_correct(tensor([[0.1, 0.9], [0.8, 0.2]]), tensor([1, 1]))
    1
    """
    predicted = output.argmax(1)
    return int((predicted == labels.to(predicted.device)).sum())


def has_sample_axis(leaf: Any, size: int) -> bool:
    """Return whether a part of a batch is a tensor whose first axis has length ``size``."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def select_samples(batch: Batch, index: Sequence[int] | slice, size: int) -> Batch:
    """Return the samples at ``index`` of a batch of ``size`` samples; parts without a sample axis are kept whole."""

    def select(leaf: Any) -> Any:
        return leaf[index] if has_sample_axis(leaf, size) else leaf

    return tree_map(select, batch)


def first_samples(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    """Yield batches until ``limit`` samples are reached; cut the last batch to fit. None means no limit."""
    if limit is None:
        yield from batches
        return
    remaining = limit
    for batch in batches:
        size = batch_size(batch)
        yield batch if size <= remaining else select_samples(batch, slice(remaining), size)
        remaining -= size
        if remaining <= 0:
            return


def chunks(size: int, max_bytes: int, bytes_per_sample: int) -> Iterator[slice]:
    """Yield slices that cover ``size`` samples, each of at most ``max_bytes`` bytes, or of a single sample."""
    step = max(1, max_bytes // max(bytes_per_sample, 1))
    for start in range(0, size, step):
        stop = min(start + step, size)
        yield slice(start, stop)
