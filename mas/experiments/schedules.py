"""Learning-rate schedules: factors of the learning rate by epoch."""

import math
from collections.abc import Callable
from typing import Any

import torch

from mas.annotations import Count, Decay


def exponential(epoch: int, decay: Decay = 0.97) -> float:
    """Return decayᵉ: the rate falls by the same factor each epoch."""
    return decay**epoch


def step(epoch: int, every: Count = 30, decay: Decay = 0.1) -> float:
    """Return a factor that falls by ``decay`` after every ``every`` epochs."""
    return decay ** (epoch // every)


def cosine(epoch: int, epochs: Count = 200) -> float:
    """Return half a cosine wave: from 1 down to 0 after ``epochs`` epochs (Loshchilov 2017).

    Raises:
        ValueError: the epoch is past the end of the wave.
    """
    if epoch >= epochs:
        raise ValueError(f"schedule cosine: epochs is {epochs}, and there are more to train; give at least {epoch + 1}")
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


SCHEDULES: dict[str, Callable[..., float]] = {f.__name__: f for f in (exponential, step, cosine)}
"""Name in YAML -> function of (epoch, options)."""

TORCH_SCHEDULES = (
    *("ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR"),
    *("LinearLR", "MultiStepLR", "PolynomialLR", "StepLR"),
)
"""Names of torch's schedulers that step once an epoch; they are names in YAML too."""


def torch_schedule(name: str) -> type[torch.optim.lr_scheduler.LRScheduler]:
    """Return a scheduler class of torch by its name."""
    found: type[torch.optim.lr_scheduler.LRScheduler] = getattr(torch.optim.lr_scheduler, name)
    return found


def torch_factor(epoch: int, name: str, lr: float = 1.0, **options: Any) -> float:
    """Return what a scheduler of torch multiplies a learning rate by, after so many epochs.

    It depends on the rate ``lr`` where an option is a rate itself, such as ``eta_min``.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = torch_schedule(name)(optimizer, **options)
    for _ in range(epoch):
        optimizer.step()
        scheduler.step()
    return float(scheduler.get_last_lr()[0]) / lr
