"""Losses of a classifier by name: functions of (output, labels, options)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mas.annotations import PartialShare, Positive


def cross_entropy(output: Tensor, y: Tensor, label_smoothing: PartialShare = 0.0) -> Tensor:
    """Cross-entropy, mean over the batch, in nats.

    Classes that a growing head does not have yet, which only evaluation shows, have p = 0.
    """
    if not torch.is_grad_enabled():
        output = F.pad(output, (0, _missing_classes(output, y)), value=-torch.inf)
    return F.cross_entropy(output, y, label_smoothing=label_smoothing)


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    """Squared error against one-hot labels, summed over classes, mean over the batch."""
    output = F.pad(output, (0, _missing_classes(output, y)))
    expected = F.one_hot(y, output.shape[1]).to(output.dtype)
    errors = (output - expected).square()
    return errors.sum(1).mean()


def multi_margin(output: Tensor, y: Tensor, margin: Positive = 1.0, p: Literal[1, 2] = 1) -> Tensor:
    """Multi-class margin loss, mean over the batch."""
    output = F.pad(output, (0, _missing_classes(output, y)))
    return F.multi_margin_loss(output, y, p=p, margin=margin)


def _missing_classes(output: Tensor, y: Tensor) -> int:
    """Return how many classes of the labels a growing head does not have yet."""
    needed = int(y.max()) + 1
    return max(0, needed - output.shape[1])


LOSSES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (cross_entropy, squared_error, multi_margin)}
"""Name in YAML -> function. Its docstring's first line describes it."""
