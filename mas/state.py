"""Measuring changes nothing: the guard that every importance pass, probe and evaluation stands in."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

# One lock for all models, not one a model: the global random streams and the compiler's stance, which are
# saved and put back here, belong to the process. Two blocks that overlap, even of different models, would
# put back each other's state. Re-entrant, as a measure may call another.
_LOCK = threading.RLock()


@contextmanager
def preserving_state(model: nn.Module) -> Iterator[nn.Module]:
    """Put ``model`` in eval mode for the length of a ``with`` block and leave no trace of it.

    Afterwards the train/eval mode of every submodule, every buffer and every global random
    stream (Python, NumPy, torch on CPU and on each GPU in use) are as before, also when the
    block raises. Parameters and their ``.grad`` are the block's own business: the engine in
    `mas.gradients` touches neither.

    Blocks may be nested. Threads take turns: a thread waits until no other is in such a block, of
    whatever model. That does not hold back a thread that *trains* the model, or draws from a global
    random stream, outside of a block.

    >>> layer = nn.Dropout().train()
    >>> with preserving_state(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    with _LOCK, _preserved(model):
        model.eval()
        yield model


@contextmanager
def _preserved(model: nn.Module) -> Iterator[None]:
    """Put everything back that `measuring` lists."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = {id(b): (b, b.clone()) for _, own in buffers for b in own.values() if b is not None}
    python, numpy = random.getstate(), np.random.get_state()
    eager = torch.compiler.set_stance("force_eager")  # the layers must be seen one by one
    with eager, torch.inference_mode(False), torch.random.fork_rng(devices=_cuda_devices(model)):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, own in buffers:
                module._buffers.clear()
                module._buffers.update(own)
            with torch.no_grad():
                for buffer, value in values.values():
                    if not torch.equal(buffer, value):  # a write would spoil a backward pass that is yet to come
                        buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Give the model inside of `torch.compile`, `nn.DataParallel` or DistributedDataParallel."""
    inner: Any = model
    while not isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        if not isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            return inner
        inner = inner._orig_mod
    return unwrap_model(inner.module)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Give the parameters by the names they have in the bare model, however it is wrapped.

    >>> list(named_parameters(nn.DataParallel(nn.Linear(1, 1))))
    ['weight', 'bias']
    """
    return {name.replace("_orig_mod.", ""): p for name, p in unwrap_model(model).named_parameters()}


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})
