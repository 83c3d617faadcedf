"""Optimizers of torch by name, such as ``adamw``."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

GIVEN = ("params", "lr", "weight_decay", "momentum")
"""Arguments that ``training`` has keys of its own for."""

_UNFIT = {"LBFGS", "SparseAdam", "Muon", "Optimizer"}  # need a closure, sparse gradients, or matrices alone

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name.lower(): found
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and name not in _UNFIT
}
"""Name in YAML, the class's in lower case -> class."""


def takes(name: str, argument: str) -> bool:
    """Return whether an optimizer takes an argument."""
    return argument in inspect.signature(OPTIMIZERS[name]).parameters


def make_optimizer(
    name: str, model: nn.Module, *, lr: float, weight_decay: float, momentum: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Build an optimizer of a network's parameters; SGD and Adam run as one kernel a step."""
    arguments: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, **options}
    if takes(name, "momentum"):
        arguments["momentum"] = momentum
    # one kernel a step; with momentum it breaks where a parameter gets its first gradient later than others
    can_fuse = name in ("adam", "adamw") or (name == "sgd" and not momentum)
    if can_fuse and not options.keys() & {"foreach", "differentiable"}:  # torch refuses these with fused
        arguments.setdefault("fused", True)
    known = {key: value for key, value in arguments.items() if takes(name, key)}
    return OPTIMIZERS[name](model.parameters(), **known)
