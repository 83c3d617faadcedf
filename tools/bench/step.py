"""A training step with a penalty ÷ the naive step, by the number of tasks behind it.

The fewer samples a batch has for each weight, the more a penalty weighs: it touches every weight once.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import avalanche.training.plugins as avalanche_plugins
import torch
import torch.nn.functional as F

from mas.strategies import EWCPlugin, MASPlugin
from tools.bench.peers import experience
from tools.bench.timing import ratios
from tools.bench.workloads import Workload

PLUGINS: dict[str, Callable[[], Any]] = {
    "here, MAS": lambda: MASPlugin(lam=1.0),
    "here, EWC": lambda: EWCPlugin(lam=1.0, labels="empirical"),
    "Avalanche's MASPlugin": lambda: avalanche_plugins.MASPlugin(1.0),
    "Avalanche's EWCPlugin": lambda: avalanche_plugins.EWCPlugin(1.0),
}
TARGET = 1.1
BATCH = 128


def measure(
    workloads: dict[str, Workload], tasks: tuple[int, ...], repeats: int, device: str
) -> Iterator[dict[str, Any]]:
    """Return a row for each workload, number of tasks and plugin."""
    for case, workload in workloads.items():
        for count in tasks:
            steps = {name: _step(workload, make(), count, device) for name, make in PLUGINS.items()}
            times = ratios({"naive step": _step(workload, None, 0, device), **steps}, repeats, device)
            for name, figures in times.items():
                per_step = figures | {"ms": figures["ms"] / workload.batches}
                yield {"case": case, "way": name, "tasks": count, **per_step, "target": TARGET}


def _step(workload: Workload, plugin: Any, tasks: int, device: str) -> Callable[[], None]:
    """Return a function that trains for a few steps, the plugin called where a strategy calls it."""
    model, ((x, y), *_) = workload.model(device), workload.data(device, BATCH)
    strategy = SimpleNamespace(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-4),
        _criterion=F.cross_entropy,
        device=x.device,
        train_mb_size=8,
        clock=SimpleNamespace(train_exp_counter=0),
        loss=None,
        experience=experience(x[:8], y[:8]),
    )
    for task in range(tasks):
        strategy.clock.train_exp_counter = task
        plugin.after_training_exp(strategy)
    strategy.clock.train_exp_counter = tasks

    def steps() -> None:
        for _ in range(workload.batches):
            strategy.optimizer.zero_grad()
            strategy.loss = F.cross_entropy(model(x), y)
            if plugin is not None:
                plugin.before_backward(strategy)
            strategy.loss.backward()
            if plugin is not None:
                plugin.after_backward(strategy)
            strategy.optimizer.step()

    steps()  # the first allocates
    return steps
