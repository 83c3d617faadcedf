"""Whether cells can train on the devices that a config names."""

import os

import torch

from mas.experiments.errors import UserError


def check_device(device: str) -> None:
    """Raise UserError if torch does not see a device on this machine."""
    kind, _, number = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"training.device: found {device!r}, but torch sees no GPU here; set training.device=cpu")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        last = f"cuda:{torch.cuda.device_count() - 1}"
        raise UserError(f"training.device: found {device!r}, but the last GPU here is {last}; set that")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("training.device: found 'mps', but torch cannot use it here; set training.device=cpu")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
