"""Train an expert on one experience of a stream, and measure how well it serves as a start for each of the others."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mas.batches import run_forward
from mas.experiments.avalanche_types import Benchmark, Experience, Strategy
from mas.experiments.build import draw_stream, make_strategy
from mas.experiments.cell import Cell, CellTraining, ExpertSettings
from mas.experiments.config.embedding import EmbeddingOptions
from mas.experiments.config.experts import FineTuning, TransferOptions
from mas.experiments.config.schema import STRATEGY_MODELS
from mas.experiments.context import CellContext
from mas.experiments.embedding import Batches, in_shape, task_batches
from mas.experiments.errors import BLOW_UPS
from mas.experiments.probe_network import Shape, probe_network, shape_of
from mas.experiments.progress import StepReports, as_part
from mas.experiments.record import Outcome
from mas.experiments.resuming import Resumable, save_outcome, saved_outcome
from mas.experiments.seeds import stream_seed
from mas.experiments.stopping import StoppedError, stop_requested
from mas.experiments.training import Trained, as_cell
from mas.finite import check_weights
from mas.task2vec import head_accuracy, reachability
from mas.task2vec.head import features_of, find_head, put_head, zero_head

_BATCH = 256  # of images whose features are computed: it changes no number but for rounding


def measure_expert(cell: Cell, keep_weights: bool = False, context: CellContext | None = None) -> Trained:
    """Train an expert and adapt it to every experience of a cell's stream, on one thread; weights are not kept.

    A cell that was stopped goes on with the training of the expert, or with the experience after the last one that
    the expert was adapted to.

    The outcome's ``accuracy`` is one row, an accuracy for each experience on its test images. The experience that
    the expert was trained on has its accuracy too, though it is no new task.
    """
    settings = cell.settings
    if not isinstance(settings, ExpertSettings):
        raise TypeError(f"{cell.id} has no expert: its settings are {type(settings).__name__}")
    start = time.perf_counter()
    outcome = Outcome(accuracy=[[]])
    with as_cell():
        try:
            _measure(cell, settings, outcome, context or CellContext())
        except BLOW_UPS as error:
            outcome.accuracy = []
            outcome.status, outcome.reason = "diverged", str(error)
    outcome.seconds = round(outcome.seconds + time.perf_counter() - start, 3)
    return Trained(outcome)


def _measure(cell: Cell, settings: ExpertSettings, outcome: Outcome, context: CellContext) -> None:
    """Train the expert, and add the accuracies to an outcome that it lacks."""
    seed, checkpoints = cell.seed, context.checkpoints
    stream = seed if settings.stream_seed is None else settings.stream_seed
    benchmark = draw_stream(settings.benchmark, stream)
    report_probe = as_part(cell, "probe network", context.report)
    expert, shape, _ = probe_network(settings.probe_network, shape_of(benchmark), report_probe)
    if settings.expert is not None and settings.training is not None:
        experience = benchmark.train_stream[settings.expert]
        own_seed = stream_seed(seed, "expert", settings.expert)
        strategy = expert_strategy(expert, experience, settings.training, shape=shape, seed=own_seed)
        resumable = Resumable(strategy, benchmark, outcome, checkpoints)
        _train(resumable, experience)
        save: Callable[[], None] = partial(_save, resumable)
    else:
        found = saved_outcome(checkpoints)
        outcome.accuracy, outcome.seconds = found.accuracy or [[]], found.seconds
        save = partial(save_outcome, checkpoints, outcome)
    device = settings.training.device if settings.training else "cpu"
    expert = expert.to(device)
    (accuracies,) = outcome.accuracy
    report = StepReports(cell, len(benchmark.train_stream), context.report)
    for number in range(len(accuracies), len(benchmark.train_stream)):
        report.at(number)
        train, test = new_task(benchmark, number, settings.transfer, shape=shape, seed=seed, device=device)
        own_seed = stream_seed(seed, "transfer", number)  # the same for all experts
        accuracies.append(adapted_accuracy(expert, train, test, settings.transfer, seed=own_seed))
        save()
    report.at(len(accuracies))


def _train(resumable: Resumable, experience: Experience) -> None:
    """Train an expert, or what is left of it; stage 1 is its end."""
    resumable.strategy.plugins.append(resumable)
    resumable.resume()
    if resumable.stage:
        return
    if not resumable.is_inside:
        resumable.begin()
    _run(resumable.strategy, experience)
    resumable.stage = 1
    resumable.begin()


def _save(resumable: Resumable) -> None:
    resumable.save()
    if stop_requested():
        raise StoppedError


def _run(strategy: Strategy, experience: Experience) -> None:
    strategy.train(experience, pin_memory=False)
    check_weights(strategy.model.network)


def train_expert(
    network: nn.Module, experience: Experience, training: CellTraining, *, shape: Shape, seed: int
) -> None:
    """Train a network in place on one experience; the arguments are those of `expert_strategy`.

    Raises:
        DivergedError, FloatingPointError: the loss or a weight is not finite.
    """
    _run(expert_strategy(network, experience, training, shape=shape, seed=seed), experience)


def expert_strategy(
    network: nn.Module, experience: Experience, training: CellTraining, *, shape: Shape, seed: int
) -> Strategy:
    """Return what trains a network in place on one experience, with a new head whose weights are 0 at first.

    Args:
        network: such as a probe network.
        experience: of a training stream, with labels from 0.
        training: how.
        shape: of the images that the network takes; those of the experience are resized.
        seed: of the order of images, and of noise.
    """
    image, *_ = experience.dataset.eval()[0]
    batch = [in_shape(image[None], shape)]
    head = find_head(network, batch, None)
    width = features_of(network, head, [batch], run_forward).shape[1]
    classes = 1 + max(experience.classes_in_this_experience)
    put_head(network, head, zero_head(width, classes))
    naive: Any = STRATEGY_MODELS["naive"]()
    return make_strategy(naive, _Resized(network, shape), training, seed)


def new_task(
    benchmark: Benchmark, number: int, transfer: TransferOptions, *, shape: Shape, seed: int, device: str = "cpu"
) -> tuple[Batches, Batches]:
    """Return the training images of an experience that experts are adapted with, and all of its test images.

    Args:
        benchmark: the stream.
        number: of the experience.
        transfer: says how many training images of each class there are.
        shape: of the images that the experts take.
        seed: of the draw of training images.
        device: where they are put.
    """
    few = EmbeddingOptions(per_class=transfer.per_class, batch_size=_BATCH, device=device)
    every = EmbeddingOptions(data="test", batch_size=_BATCH, device=device)
    train = task_batches(benchmark.train_stream[number], few, shape, seed=seed, number=number)
    test = task_batches(benchmark.test_stream[number], every, shape, seed=seed, number=number)
    return train, test


def adapted_accuracy(
    expert: nn.Module, train: Batches, test: Batches, transfer: TransferOptions, *, seed: int
) -> float:
    """Return the test accuracy, from 0 to 1, of an expert that is adapted to a task; it is left as it was.

    Args:
        expert: a trained network.
        train, test: images of the task.
        transfer: how it is adapted.
        seed: of the order of images in fine-tuning.

    Raises:
        FloatingPointError: the loss is not finite in fine-tuning.
    """
    if transfer.fine_tune is None:
        return head_accuracy(expert, train, test, weight_decay=transfer.weight_decay)
    return _fine_tuned_accuracy(expert, train, test, transfer.fine_tune, seed)


def _fine_tuned_accuracy(expert: nn.Module, train: Batches, test: Batches, options: FineTuning, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    found = reachability(
        expert,
        _in_mixed_batches(train, options.batch_size, generator),
        test,
        steps=options.steps,
        every=options.steps,
        lr=options.lr,
        generator=generator,
    )
    return found.accuracy


def _in_mixed_batches(batches: Batches, size: int, generator: torch.Generator) -> Batches:
    """Return the images in a random order, in batches of another size: data sets may be sorted by class."""
    x = torch.cat([batch[0] for batch in batches])
    y = torch.cat([batch[1] for batch in batches])
    order = torch.randperm(len(y), generator=generator).to(y.device)
    return [(x[part], y[part]) for part in order.split(size)]


class _Resized(nn.Module):
    """A network behind the change of images to the shape that it takes."""

    def __init__(self, network: nn.Module, shape: Shape):
        super().__init__()
        self.network = network
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(in_shape(x, self.shape))
        return output
