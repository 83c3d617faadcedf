"""Train one cell: build benchmark, model and strategy from plain settings and fill R[t, i]."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor, nn

from mas.benchmarks import STREAMS
from mas.benchmarks.images import keep_on_device
from mas.experiments.cells import Cell, stream_seed
from mas.experiments.errors import DivergedError
from mas.experiments.models import model_for
from mas.experiments.selection import continual_option, tune
from mas.measuring import measuring
from mas.strategies import STRATEGIES, ImportancePlugin, Joint

_EVAL_BATCH = 512


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and test one cell.

    Returns:
        Plain data: ``status`` ("finished" or "diverged") with a ``reason``, ``untrained`` (T
        accuracies), ``accuracy`` (T rows of T accuracies, None where not measured), ``tries`` (of
        ``select: continual``, a list per experience), ``seconds``.
    """
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the last bit, depends on the thread count
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Avalanche's, by Avalanche
            result = _train(cell)
    finally:
        torch.set_num_threads(threads)
    return result | {"seconds": round(time.perf_counter() - start, 3)}


def _train(cell: Cell) -> dict[str, Any]:
    benchmark = _benchmark(cell)
    strategy = build_strategy(cell, benchmark)
    strategy.plugins.append(_Accuracies())
    tune_for = _tuner(cell)
    size = len(benchmark.train_stream)
    result: dict[str, Any] = {
        "status": "finished",
        "reason": None,
        "untrained": None,
        "accuracy": [[None] * size for _ in range(size)],
        "tries": [],
    }
    try:
        result["untrained"] = _test(strategy, benchmark.test_stream)
        for trained_on, experiences in _stages(strategy, benchmark):
            result["tries"] += tune_for(strategy, trained_on)
            _learn(strategy, experiences, cell)
            result["accuracy"][trained_on] = _test(strategy, benchmark.test_stream)
    except (DivergedError, FloatingPointError) as error:
        return result | {"status": "diverged", "reason": str(error)}
    return result


def _benchmark(cell: Cell, **changes: Any) -> Any:
    options = cell.settings["benchmark"] | changes
    benchmark = STREAMS[options.pop("stream")](**options, seed=stream_seed(cell.seed, "stream"))
    if cell.settings["training"]["device"] == "cuda":
        keep_on_device(benchmark, "cuda", torch.cuda.mem_get_info()[0])
    return benchmark


def _learn(strategy: Any, experiences: Any, cell: Cell) -> None:
    reset = cell.settings["training"]["reset_optimizer"]
    strategy.train(experiences, reset_optimizer_state=reset, pin_memory=False)  # images may lie on the GPU
    for name, parameter in strategy.model.named_parameters():
        if not torch.isfinite(parameter).all():
            at = strategy.clock.train_exp_counter - 1
            raise DivergedError(f"weights of {name} are not finite after experience {at}")


def _tuner(cell: Cell) -> Callable[[Any, int], list[Any]]:
    """Give what sets the strength before each experience: nothing, unless it is to be chosen continually."""
    settings = continual_option(cell.settings["strategy"])
    if settings is None:
        return lambda strategy, number: []
    held_out = _benchmark(cell, validation=cell.settings["held_out"])  # the same stream; test data are not in it

    def accuracy_of(strategy: Any, number: int) -> float:
        try:
            _learn(strategy, held_out.train_stream[number], cell)
            return _test(strategy, held_out.test_stream[number])[0]
        except (DivergedError, FloatingPointError):
            return math.nan

    return lambda strategy, number: [tune(strategy, settings, lambda copy: accuracy_of(copy, number))]


def build_strategy(cell: Cell, benchmark: Any) -> Any:
    """Build an Avalanche strategy with the cell's model, optimizer and random streams."""
    options = dict(cell.settings["strategy"])
    if settings := continual_option(options):
        options["lam"] = settings["start"]
    model = model_for(benchmark, cell.settings["model"], stream_seed(cell.seed, "initialisation"))
    strategy = plain_strategy(STRATEGIES[options.pop("name")], model, cell.settings["training"], cell.seed, **options)
    for plugin in strategy.plugins:
        if isinstance(plugin, ImportancePlugin):
            plugin.generator.manual_seed(stream_seed(cell.seed, "importance"))
    return strategy


def plain_strategy(kind: Any, model: nn.Module, training: dict[str, Any], seed: int, **options: Any) -> Any:
    """Build a strategy, ours or Avalanche's, from the config's ``training``; it logs nothing and is guarded."""
    return kind(
        model=model,
        optimizer=_optimizer(model, training),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=training["batch_size"],
        train_epochs=training["epochs"],
        eval_mb_size=_EVAL_BATCH,
        device=training["device"],
        plugins=[_RandomStreams(seed), _Guard()],
        evaluator=_silent(),
        **options,
    )


def _optimizer(model: nn.Module, training: dict[str, Any]) -> torch.optim.Optimizer:
    common = {"lr": training["lr"], "weight_decay": training["weight_decay"], "fused": True}  # a third of the time
    if training["optimizer"] == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=training["momentum"], **common)
    return torch.optim.Adam(model.parameters(), **common)


def _silent() -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no loggers specified": that is what silent means
        return EvaluationPlugin()


def _stages(strategy: Any, benchmark: Any) -> list[tuple[int, Any]]:
    """Give (t, what to train on) for each row of R; joint training has only the last row."""
    experiences = list(benchmark.train_stream)
    if isinstance(strategy, Joint):
        return [(len(experiences) - 1, experiences)]
    return list(enumerate(experiences))


def _test(strategy: Any, stream: Any) -> list[float]:
    """Give the accuracy on each experience of a stream."""
    accuracies = next(p for p in strategy.plugins if isinstance(p, _Accuracies))
    accuracies.found = []
    with measuring(strategy.model):
        strategy.eval(stream, pin_memory=False)
    return accuracies.found


class _Accuracies(SupervisedPlugin[Any]):
    """Collect the accuracy on each experience while a strategy evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []
        self.right = self.seen = 0

    def before_eval_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.right = self.seen = 0

    def after_eval_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        output: Tensor = strategy.mb_output
        if not torch.isfinite(output).all():
            raise DivergedError("the network's output is not finite in evaluation")
        self.right += int((output.argmax(1) == strategy.mb_y).sum())
        self.seen += len(output)

    def after_eval_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.found.append(self.right / self.seen)


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
