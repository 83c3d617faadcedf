"""How any strategy, ours or Avalanche's, is built for a run: quiet, guarded, and with random streams of its own."""

import math
import random
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor, nn

from mas.experiments.errors import DivergedError
from mas.experiments.seeds import stream_seed

Count = Annotated[int, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]

_EVAL_BATCH = 512


def exponential(epoch: int, decay: Share = 0.97) -> float:
    """Give decayᵉ: less by the same factor each epoch."""
    return decay**epoch


def step(epoch: int, every: Count = 30, decay: Share = 0.1) -> float:
    """Give a factor that falls by ``decay`` after each so many epochs."""
    return decay ** (epoch // every)


def cosine(epoch: int, epochs: Count = 200) -> float:
    """Give half a cosine wave: from 1 down to 0 after ``epochs`` (Loshchilov 2017)."""
    if epoch >= epochs:
        raise ValueError(f"schedule cosine: epochs is {epochs}, and there are more to train; give at least {epoch + 1}")
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


SCHEDULES: dict[str, Callable[..., float]] = {f.__name__: f for f in (exponential, step, cosine)}
"""Name in YAML -> function of (epoch, options): what the learning rate is multiplied by in that epoch."""


def is_constant(training: dict[str, Any]) -> bool:
    """Say whether the learning rate stays what it is."""
    return not training.get("schedule")


def rate_factor(training: dict[str, Any], epoch: int) -> float:
    """Give the schedule's factor in an epoch of an experience; ``first_epoch`` is where in the schedule it begins."""
    if is_constant(training):
        return 1.0
    options = dict(training["schedule"])
    return SCHEDULES[options.pop("name")](epoch + training.get("first_epoch", 0), **options)


def make_strategy(kind: Any, model: nn.Module, training: dict[str, Any], seed: int, **options: Any) -> Any:
    """Build a strategy, ours or Avalanche's, from the config's ``training``; it logs nothing and is guarded."""
    strategy = kind(
        model=model,
        optimizer=_optimizer(model, training),
        criterion=_cross_entropy,
        train_mb_size=training["batch_size"],
        train_epochs=epochs_of(training, 0),
        eval_mb_size=_EVAL_BATCH,
        device=training["device"],
        plugins=[_RandomStreams(seed), _Guard(), *([] if is_constant(training) else [_LearningRate(training)])],
        evaluator=_silent(),
        **options,
    )
    strategy.plugins.remove(strategy.evaluator)  # it has no metrics, and takes time in each iteration nevertheless
    return strategy


def epochs_of(training: dict[str, Any], experience: int) -> int:
    """Give the epochs of an experience."""
    epochs = training["epochs"]
    return epochs if isinstance(epochs, int) else epochs[experience]


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Give the mean loss; classes that a growing head does not have yet, which only evaluation shows, have p = 0."""
    if not torch.is_grad_enabled() and (unseen := int(y.max()) + 1 - output.shape[1]) > 0:
        output = F.pad(output, (0, unseen), value=-torch.inf)
    return F.cross_entropy(output, y)


def _optimizer(model: nn.Module, training: dict[str, Any]) -> torch.optim.Optimizer:
    common = {"lr": training["lr"], "weight_decay": training["weight_decay"]}
    if training["optimizer"] == "sgd":
        # one kernel a step; with momentum it breaks where a parameter gets its first gradient later than others
        fused = not training["momentum"]
        return torch.optim.SGD(model.parameters(), momentum=training["momentum"], fused=fused, **common)
    return torch.optim.Adam(model.parameters(), fused=True, **common)


def _silent() -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no loggers specified": that is what silent means
        return EvaluationPlugin()


class _Guard(SupervisedPlugin[Any]):
    """End a run whose loss is no number any more."""

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if not torch.isfinite(strategy.loss).all():
            at = strategy.clock
            raise DivergedError(
                f"loss is {strategy.loss.item()} in experience {at.train_exp_counter}, "
                f"epoch {at.train_exp_epochs}, iteration {at.train_epoch_iterations}"
            )


class _LearningRate(SupervisedPlugin[Any]):
    """Set the learning rate of each epoch, counted from the beginning of its experience."""

    def __init__(self, training: dict[str, Any]):
        super().__init__()
        self.training = training

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        rate = self.training["lr"] * rate_factor(self.training, strategy.clock.train_exp_epochs)
        for group in strategy.optimizer.param_groups:
            group["lr"] = rate


class _RandomStreams(SupervisedPlugin[Any]):
    """Give shuffling and training noise streams of their own, whatever a strategy draws.

    Avalanche's loaders and torch's dropout draw from the global stream. It is set anew before an
    epoch's order is drawn, and again before the epoch's first step.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._set("shuffling", strategy.clock)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if strategy.clock.train_epoch_iterations == 0:
            self._set("noise", strategy.clock)

    def _set(self, name: str, clock: Any) -> None:
        seed = stream_seed(self.seed, name, clock.train_exp_counter, clock.train_exp_epochs)
        random.seed(seed)  # Avalanche's AGEM draws from it
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes milliseconds to ask for every device
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
