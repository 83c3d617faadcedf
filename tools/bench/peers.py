"""Importance as other libraries give it; each function makes ready what is not to be timed."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import EWCPlugin, MASPlugin
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tools.bench.passes import Data, Importance, mean


def by_backpack(model: nn.Module, data: Data) -> Callable[[], Importance]:
    """BackPACK's per-sample gradients (BatchGrad)."""
    own = extend(copy.deepcopy(model), use_converter=not isinstance(model, nn.Sequential))
    names = [name for name, _ in model.named_parameters()]

    def importance() -> Importance:
        total = {n: torch.zeros_like(p) for n, p in zip(names, own.parameters(), strict=True)}
        for x, _ in data:
            own.zero_grad()
            with backpack(BatchGrad()):
                own(x).square().sum().backward()
            for name, p in zip(names, own.parameters(), strict=True):
                total[name] += p.grad_batch.abs().sum(0)
                del p.grad_batch
        return mean(total, data)

    return importance


def avalanche_mas(model: nn.Module, data: Data) -> Callable[[], Importance]:
    """Avalanche's, as it is called: absolute values of batch means, through its data loader."""
    strategy, plugin = _strategy(copy.deepcopy(model), data), MASPlugin()
    return lambda: {n: p.data for n, p in plugin._get_importance(strategy).items()}


def avalanche_ewc(model: nn.Module, data: Data) -> Callable[[], Importance]:
    """Avalanche's, as it is called: squares of batch means, through its data loader."""
    s, plugin = _strategy(copy.deepcopy(model), data), EWCPlugin(1.0)
    parts = (s.model, F.cross_entropy, s.optimizer, s.experience.dataset, s.device, s.train_mb_size)
    return lambda: {n: p.data for n, p in plugin.compute_importances(*parts).items()}


def experience(x: Tensor, y: Tensor) -> Any:
    """Return the samples as one Avalanche experience."""
    data = TensorDataset(x, y)
    return nc_benchmark(data, data, 1, task_labels=False, shuffle=False).train_stream[0]


def _strategy(model: nn.Module, data: Data) -> SimpleNamespace:
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    return SimpleNamespace(
        experience=experience(x, y),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        device=x.device,
        train_mb_size=len(data[0][0]),
    )
