"""How any strategy, ours or Avalanche's, is built for a run: quiet, guarded, and with random streams of its own."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor, nn

from mas.experiments.errors import DivergedError
from mas.experiments.seeds import stream_seed

_EVAL_BATCH = 512


def make_strategy(kind: Any, model: nn.Module, training: dict[str, Any], seed: int, **options: Any) -> Any:
    """Build a strategy, ours or Avalanche's, from the config's ``training``; it logs nothing and is guarded."""
    return kind(
        model=model,
        optimizer=_optimizer(model, training),
        criterion=_cross_entropy,
        train_mb_size=training["batch_size"],
        train_epochs=training["epochs"],
        eval_mb_size=_EVAL_BATCH,
        device=training["device"],
        plugins=[_RandomStreams(seed), _Guard()],
        evaluator=_silent(),
        **options,
    )


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Give the mean loss; classes that a growing head does not have yet, which only evaluation shows, have p = 0."""
    if not torch.is_grad_enabled() and (unseen := int(y.max()) + 1 - output.shape[1]) > 0:
        output = F.pad(output, (0, unseen), value=-torch.inf)
    return F.cross_entropy(output, y)


def _optimizer(model: nn.Module, training: dict[str, Any]) -> torch.optim.Optimizer:
    common = {"lr": training["lr"], "weight_decay": training["weight_decay"], "fused": True}  # one kernel a step
    if training["optimizer"] == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=training["momentum"], **common)
    return torch.optim.Adam(model.parameters(), **common)


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
        torch.manual_seed(stream_seed(self.seed, name, clock.train_exp_counter, clock.train_exp_epochs))
