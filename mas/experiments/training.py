"""Train one cell along its stream, and test it after each experience."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from mas.batches import count_correct
from mas.experiments.avalanche_types import Benchmark, Experience, Strategy, Stream
from mas.experiments.build import build_benchmark, build_strategy
from mas.experiments.cell import THREADS, Cell, TrainingSettings
from mas.experiments.context import CellContext
from mas.experiments.continual import penalty_of, tune
from mas.experiments.errors import BLOW_UPS, DivergedError
from mas.experiments.events import CellTested
from mas.experiments.probing import CellProbe, make_deficit_plugin, make_probes
from mas.experiments.progress import ProgressPlugin, Stage
from mas.experiments.provenance import Provenance
from mas.experiments.record import Outcome, StrengthTry
from mas.experiments.resuming import Resumable, StopsWhenAsked
from mas.experiments.stopping import StoppedError
from mas.state import preserving_state
from mas.strategies import Joint, ProbePlugin


@dataclass(frozen=True)
class Trained:
    """A cell that was trained and tested."""

    outcome: Outcome
    weights: dict[str, Tensor] | None = None  # of the network at the end, on the CPU, if they are to be kept
    provenance: Provenance | None = None


def train_cell(cell: Cell, keep_weights: bool = False, context: CellContext | None = None) -> Trained:
    """Train and test one cell, on one thread; go on from its newest checkpoint, if there is one.

    Args:
        cell: to be trained.
        keep_weights: whether to return the weights.
        context: where checkpoints are saved and progress is reported; None does neither.
    """
    start = time.perf_counter()
    with as_cell():
        outcome, model = _train(cell, context or CellContext())
    outcome = replace(outcome, seconds=round(outcome.seconds + time.perf_counter() - start, 3))
    return Trained(outcome, _weights(model) if keep_weights else None)


@contextmanager
def as_cell() -> Iterator[None]:
    """Run on as many threads as every cell does, and hide deprecation warnings of Avalanche."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with _without_deprecations():
            yield
    finally:
        torch.set_num_threads(threads)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hide deprecation warnings of Avalanche. It sets filters of its own, so all warnings are recorded first."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _train(cell: Cell, context: CellContext) -> tuple[Outcome, nn.Module]:
    settings, seed = cell.training, cell.seed
    benchmark = build_benchmark(settings, seed)
    strategy = build_strategy(settings, benchmark, seed)
    strategy.plugins.append(_Accuracies())
    probes = _add_deficit_and_probes(strategy, settings, benchmark, seed)
    tune_for = _tuner(strategy, settings, seed)
    size = len(benchmark.train_stream)
    outcome = Outcome(accuracy=[[None] * size for _ in range(size)])
    resumable = Resumable(strategy, benchmark, outcome, context.checkpoints)
    stages = _stages(strategy, benchmark)
    progress = ProgressPlugin(cell, _work_of(stages, settings), context.report)
    strategy.plugins += [resumable, progress]  # last: the first saves what all others have done
    try:
        resumable.resume()
        if outcome.untrained is None:
            outcome.untrained = _test(strategy, benchmark.test_stream)
            context.report(CellTested(cell, -1, tuple(outcome.untrained)))
        for trained_on, experiences in stages[resumable.stage :]:
            if not resumable.is_inside:
                resumable.begin()
                outcome.tries += tune_for(resumable, trained_on)
                resumable.tries = []
            _learn(strategy, experiences, settings)
            accuracies = _test(strategy, benchmark.test_stream)
            outcome.accuracy[trained_on] = list(accuracies)
            context.report(CellTested(cell, trained_on, tuple(accuracies)))
            resumable.stage += 1
    except BLOW_UPS as error:
        outcome.status, outcome.reason = "diverged", str(error)
    outcome.probes = [row for probe in probes for row in probe.rows()]
    return outcome, strategy.model


def _add_deficit_and_probes(
    strategy: Strategy, settings: TrainingSettings, benchmark: Benchmark, seed: int
) -> list[CellProbe]:
    """Add the cell's deficit to a strategy, before all that looks at batches, and its probes; return these."""
    deficit = None
    if settings.deficit is not None:
        deficit = make_deficit_plugin(settings.deficit, benchmark, seed)
        strategy.plugins.insert(0, deficit)
    probes = make_probes(settings.probes, deficit, seed)
    strategy.plugins += [probe.plugin for probe in probes]
    return probes


def _learn(strategy: Strategy, experiences: Experience | list[Experience], settings: TrainingSettings) -> None:
    strategy.train_epochs = settings.training.epochs_of(strategy.clock.train_exp_counter)
    reset = settings.training.reset_optimizer
    strategy.train(experiences, reset_optimizer_state=reset, pin_memory=False)  # images may lie on the GPU
    for name, parameter in strategy.model.named_parameters():
        if not torch.isfinite(parameter).all():
            at = strategy.clock.train_exp_counter - 1
            raise DivergedError(f"weights of {name} are not finite after experience {at}")


_NOT_IN_COPIES = (ProbePlugin, Resumable, ProgressPlugin)

Tuner = Callable[[Resumable, int], list[list[StrengthTry]]]


def _tuner(strategy: Strategy, settings: TrainingSettings, seed: int) -> Tuner:
    """Return what sets the strength before each experience: nothing, unless it is to be chosen continually."""
    how = settings.strategy.continual_choice
    if how is None:
        return lambda resumable, number: []
    unit = penalty_of(strategy).strength / how.start
    validation = settings.selection.validation if settings.selection else None
    held_out = build_benchmark(settings, seed, validation)  # the same stream; no test data

    def accuracy_of(strategy: Strategy, number: int) -> float:
        kept = [plugin for plugin in strategy.plugins if not isinstance(plugin, _NOT_IN_COPIES)]
        strategy.plugins = [*kept, StopsWhenAsked()]
        try:
            _learn(strategy, held_out.train_stream[number], settings)
            return _test(strategy, held_out.test_stream[number])[0]
        except BLOW_UPS:
            return math.nan

    def tune_for(resumable: Resumable, number: int) -> list[list[StrengthTry]]:
        try:
            return [
                tune(
                    strategy,
                    how,
                    unit,
                    lambda copy: accuracy_of(copy, number),
                    made=resumable.tries,
                    note=resumable.note_try,
                )
            ]
        except StoppedError:
            resumable.save()  # the tries that are finished
            raise

    return tune_for


def _stages(strategy: Strategy, benchmark: Benchmark) -> list[tuple[int, Experience | list[Experience]]]:
    """Return (t, what to train on) for each row of R; joint training has only the last row."""
    experiences = list(benchmark.train_stream)
    if isinstance(strategy, Joint):
        return [(len(experiences) - 1, experiences)]
    return list(enumerate(experiences))


def _work_of(stages: Sequence[tuple[int, Experience | list[Experience]]], settings: TrainingSettings) -> list[Stage]:
    """Return how much is trained in each stage."""
    found = []
    for number, (_, experiences) in enumerate(stages):
        trained = experiences if isinstance(experiences, list) else [experiences]
        samples = sum(len(experience.dataset) for experience in trained)
        found.append(Stage(settings.training.epochs_of(number), samples))
    return found


def _test(strategy: Strategy, stream: Stream | Experience) -> list[float]:
    """Return the accuracy on each experience of a stream."""
    accuracies = next(p for p in strategy.plugins if isinstance(p, _Accuracies))
    accuracies.found = []
    with preserving_state(strategy.model):
        strategy.eval(stream, pin_memory=False)
    return accuracies.found


class _Accuracies(SupervisedPlugin[Strategy]):
    """Collect the accuracy on each experience while a strategy evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []
        self.right = 0
        self.seen = 0

    def before_eval_exp(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        self.right = 0
        self.seen = 0

    def after_eval_iteration(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        output: Tensor = strategy.mb_output
        if not torch.isfinite(output).all():
            raise DivergedError("the network's output is not finite in evaluation")
        self.right += count_correct(output, strategy.mb_y)
        self.seen += len(output)

    def after_eval_exp(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        self.found.append(self.right / self.seen)
