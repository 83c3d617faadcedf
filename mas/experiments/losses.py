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
    missing = int(y.max()) + 1 - output.shape[1] if not torch.is_grad_enabled() else 0
    if missing > 0:
        output = F.pad(output, (0, missing), value=-torch.inf)
    return F.cross_entropy(output, y, label_smoothing=label_smoothing)


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    """Squared error against one-hot labels, summed over classes, mean over the batch."""
    expected = F.one_hot(y, max(output.shape[1], int(y.max()) + 1)).to(output.dtype)
    missing = expected.shape[1] - output.shape[1]
    return (F.pad(output, (0, missing)) - expected).square().sum(1).mean()


def multi_margin(output: Tensor, y: Tensor, margin: Positive = 1.0, p: Literal[1, 2] = 1) -> Tensor:
    """Multi-class margin loss, mean over the batch."""
    missing = int(y.max()) + 1 - output.shape[1]
    return F.multi_margin_loss(F.pad(output, (0, max(missing, 0))), y, p=p, margin=margin)


LOSSES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (cross_entropy, squared_error, multi_margin)}
"""Name in YAML -> function. Its docstring's first line describes it."""
