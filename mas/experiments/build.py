"""Build what a cell trains: its benchmark, its network and its strategy, with random streams of their own."""

import random
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from mas.benchmarks.images import keep_on_device
from mas.experiments.avalanche_types import Benchmark, Clock, Strategy
from mas.experiments.cell import CellTraining, TrainingSettings
from mas.experiments.config.schema import ModelOptions, StrategyOptions, StreamOptions, Training
from mas.experiments.errors import DivergedError
from mas.experiments.networks import build_model
from mas.experiments.optimizers import make_optimizer
from mas.experiments.seeds import stream_seed
from mas.strategies import ImportancePlugin

_EVAL_BATCH = 512


def build_benchmark(settings: TrainingSettings, seed: int, validation: float | None = None) -> Benchmark:
    """Build the stream of a cell.

    Args:
        settings: of the cell.
        seed: of the cell.
        validation: the share of the training data to hold out, in place of the settings'.
    """
    stream = settings.benchmark if validation is None else settings.benchmark.holding_out(validation)
    benchmark = draw_stream(stream, seed)
    device = settings.training.device
    if device.startswith("cuda"):
        keep_on_device(benchmark, device, free=torch.cuda.mem_get_info(device)[0])
    return benchmark


def draw_stream(stream: StreamOptions, seed: int) -> Benchmark:
    """Return the benchmark of a stream that is drawn from a cell's seed."""
    return stream.entry(**stream.arguments(), seed=stream_seed(seed, "stream"))


def model_for(benchmark: Benchmark, options: ModelOptions, seed: int) -> nn.Module:
    """Build the network of a config for a benchmark: its input's shape, its classes, its tasks.

    Args:
        benchmark: whose training stream counts.
        options: of the network.
        seed, and what is raised: as for `mas.experiments.networks.build_model`.
    """
    return network_builder(benchmark, options)(seed)


def network_builder(benchmark: Benchmark, options: ModelOptions) -> Callable[[int], nn.Module]:
    """Return the function of a seed that builds the network of a config for a benchmark."""
    outputs: dict[int, int] = {}
    for experience in benchmark.train_stream:
        classes = 1 + max(experience.classes_in_this_experience)
        for task in experience.task_labels:
            outputs[task] = max(outputs.get(task, 0), classes)
    heads = [outputs[task] for task in sorted(outputs)]
    shape = next(iter(benchmark.train_stream)).dataset[0][0].shape
    make_body = partial(options.entry, **options.arguments())
    growing = options.head == "growing"
    return lambda seed: build_model(make_body, shape, heads, seed=seed, growing=growing)


def build_strategy(settings: TrainingSettings, benchmark: Benchmark, seed: int) -> Strategy:
    """Build the strategy of a cell with its network, optimizer and random streams."""
    model = model_for(benchmark, settings.model, stream_seed(seed, "initialisation"))
    strategy = make_strategy(settings.strategy, model, settings.training, seed)
    for plugin in strategy.plugins:
        if isinstance(plugin, ImportancePlugin):
            plugin.generator.manual_seed(stream_seed(seed, "importance"))
    return strategy


def make_strategy(options: StrategyOptions, model: nn.Module, training: CellTraining, seed: int) -> Strategy:
    """Build a strategy, ours or Avalanche's. It logs nothing and ends a run whose loss is not finite.

    Args:
        options: of the strategy; a λ that is chosen continually begins at its start.
        model: the network.
        training: of the cell.
        seed: of the cell.
    """
    arguments = options.arguments()
    if options.continual_choice is not None:
        arguments["lam"] = options.continual_choice.start
    plugins: list[SupervisedPlugin[Strategy]] = [_RandomStreams(seed), _LossGuard()]
    if training.is_annealed:
        plugins.append(_LearningRate(training))
    strategy = options.entry(
        model=model,
        optimizer=optimizer_for(model, training),
        criterion=partial(training.loss.entry, **training.loss.arguments()),
        train_mb_size=training.batch_size,
        train_epochs=training.epochs_of(0),
        eval_mb_size=_EVAL_BATCH,
        device=training.device,
        plugins=plugins,
        evaluator=_silent_evaluator(),
        **arguments,
    )
    strategy.plugins.remove(strategy.evaluator)  # it has no metrics, and takes time in each iteration nevertheless
    return strategy


def optimizer_for(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Build the optimizer of a network.

    Args:
        model: the network.
        training: says which, and with what options.
    """
    return make_optimizer(
        training.optimizer.name,
        model,
        lr=training.lr,
        weight_decay=training.weight_decay,
        momentum=training.momentum,
        options=training.optimizer.options(),
    )


def _silent_evaluator() -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no loggers specified": that is what silent means
        return EvaluationPlugin()


class _LossGuard(SupervisedPlugin[Strategy]):
    """End a run whose loss is not finite."""

    def after_backward(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        if not torch.isfinite(strategy.loss).all():
            at = strategy.clock
            raise DivergedError(
                f"loss is {strategy.loss.item()} in experience {at.train_exp_counter}, "
                f"epoch {at.train_exp_epochs}, iteration {at.train_epoch_iterations}"
            )


class _LearningRate(SupervisedPlugin[Strategy]):
    """Set the learning rate of each epoch, counted from the beginning of its experience."""

    def __init__(self, training: CellTraining):
        super().__init__()
        self.training = training

    def before_training_epoch(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        rate = self.training.lr * self.training.rate_factor(strategy.clock.train_exp_epochs)
        for group in strategy.optimizer.param_groups:
            group["lr"] = rate


class _RandomStreams(SupervisedPlugin[Strategy]):
    """Reseed shuffling and training noise each epoch, whatever a strategy draws in between.

    Avalanche's loaders and torch's dropout draw from the global stream. It is set anew before an
    epoch's order is drawn, and again before the epoch's first step.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def before_training_epoch(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        self._reseed("shuffling", strategy.clock)

    def before_training_iteration(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        if strategy.clock.train_epoch_iterations == 0:
            self._reseed("noise", strategy.clock)

    def _reseed(self, name: str, clock: Clock) -> None:
        seed = stream_seed(self.seed, name, clock.train_exp_counter, clock.train_exp_epochs)
        random.seed(seed)  # Avalanche's AGEM draws from it
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes milliseconds to ask for every device
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
