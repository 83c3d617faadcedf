"""Whether a network fits into memory, found out before it is built."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GB = 10**9


def check_fits(build: Callable[[], nn.Module]) -> None:
    """Raise ValueError if a network is larger than memory: its weights, and as many gradients.

    It is built on torch's meta device, where tensors have a shape and no content.

    Args:
        build: returns the network; it must not read the content of a tensor.

    Raises:
        ValueError: with the size needed and the size there is; or ``build`` raised it.
    """
    with torch.device("meta"):
        try:
            model = build()
        except ValueError:
            raise
        except Exception as error:  # noqa: BLE001 - torch's own, of several types
            if "overflow" in str(error).lower():
                raise ValueError("the network has more weights than can be counted; make it smaller") from None
            return  # what the meta device cannot do; building the network shows the rest
    needed, there = needed_bytes(model), memory_bytes()
    if there is not None and needed > there:
        raise ValueError(
            f"the network needs {needed / _GB:,.1f} GB for its weights and their gradients, "
            f"and this machine has {there / _GB:,.1f} GB; make it smaller"
        )


def needed_bytes(model: nn.Module) -> int:
    """Return the bytes of a network's parameters, of as many gradients, and of its buffers.

    >>> needed_bytes(nn.Linear(3, 4))  # 12 weights and 4 biases, float32
    128
    """
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    return 2 * parameters + buffers


def memory_bytes() -> int | None:
    """Return the memory of this machine or container, in bytes; None where the system does not say."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # as on Windows
        return None
    return min(whole, _container_bytes() or whole)


def _container_bytes() -> int | None:
    try:
        text = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max" is no limit
