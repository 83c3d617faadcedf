"""Restore the state of a model after a measurement; every importance pass, probe and evaluation runs within it."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

# One lock for all models: the global random streams and the compiler's stance, which are saved and restored
# here, belong to the process. Two overlapping blocks, even of different models, would restore each other's
# state. The lock is re-entrant because a measure may call another one.
_LOCK = threading.RLock()


@contextmanager
def preserving_state(model: nn.Module) -> Iterator[nn.Module]:
    """Put ``model`` in eval mode for the length of a ``with`` block, and restore its state afterwards.

    Restored are the train/eval mode of every submodule, every buffer, and every global random
    stream (Python, NumPy, torch on the CPU and on each GPU in use), also when the block raises.
    Parameters and their ``.grad`` are not restored: the engine in `mas.gradients` changes neither.

    Blocks may be nested. Threads take turns: a thread waits until no other thread is in such a
    block, of any model. This does not stop a thread that *trains* the model, or draws from a global
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
    """Restore everything that `preserving_state` lists."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = _Buffers(model)
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    eager = torch.compiler.set_stance("force_eager")  # the recorder must see each layer
    with eager, torch.inference_mode(False), torch.random.fork_rng(devices=_cuda_devices(model)):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            buffers.restore()
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class _Buffers:
    """The buffers of a model and copies of their values."""

    def __init__(self, model: nn.Module):
        self.of_module = [(module, dict(module._buffers)) for module in model.modules()]
        self.copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by id: a buffer may be shared
        for _, buffers in self.of_module:
            for buffer in buffers.values():
                if buffer is not None:
                    self.copies[id(buffer)] = (buffer, buffer.clone())

    def restore(self) -> None:
        for module, buffers in self.of_module:
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in self.copies.values():
                if not torch.equal(buffer, value):  # writing to it would break a pending backward pass
                    buffer.copy_(value)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside of `torch.compile`, `nn.DataParallel` or DistributedDataParallel."""
    inner: Any = model
    while not isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        if not isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            return inner
        inner = inner._orig_mod
    return unwrap_model(inner.module)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by their names in the unwrapped model, see `unwrap_model`.

    >>> list(named_parameters(nn.DataParallel(nn.Linear(1, 1))))
    ['weight', 'bias']
    """
    inner = unwrap_model(model)
    return {name.replace("_orig_mod.", ""): p for name, p in inner.named_parameters()}


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})
