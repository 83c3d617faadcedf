"""Train one cell: build benchmark, model and strategy from plain settings and fill R[t, i]."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from mas.benchmarks import STREAMS
from mas.benchmarks.images import keep_on_device
from mas.experiments.cells import THREADS, Cell
from mas.experiments.errors import BLOW_UPS, DivergedError
from mas.experiments.models import model_for
from mas.experiments.probed import Seen, deficit_plugin, probe_plugins
from mas.experiments.seeds import stream_seed
from mas.experiments.selection import at_start, continual_option, penalty_of, tune
from mas.experiments.training import epochs_of, make_strategy
from mas.measuring import measuring
from mas.strategies import STRATEGIES, ImportancePlugin, Joint, ProbePlugin


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and test one cell.

    Returns:
        Plain data: ``status`` ("finished" or "diverged") with a ``reason``, ``untrained`` (T
        accuracies), ``accuracy`` (T rows of T accuracies, None where not measured), ``tries`` (of
        ``select: continual``, a list per experience), ``probes`` (rows of `mas.experiments.probed.Seen`),
        ``seconds``.
    """
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with _without_deprecations():
            result = _train(cell)
    finally:
        torch.set_num_threads(threads)
    return result | {"seconds": round(time.perf_counter() - start, 3)}


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Keep quiet about what Avalanche warns of in Avalanche; it sets its own filters, so what it says is caught."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _train(cell: Cell) -> dict[str, Any]:
    benchmark = _benchmark(cell)
    strategy = build_strategy(cell, benchmark)
    strategy.plugins.append(_Accuracies())
    probes = _impair_and_probe(cell, strategy, benchmark)
    tune_for = _tuner(cell, strategy)
    size = len(benchmark.train_stream)
    result: dict[str, Any] = {
        "status": "finished",
        "reason": None,
        "untrained": None,
        "accuracy": [[None] * size for _ in range(size)],
        "tries": [],
        "probes": [],
    }
    try:
        result["untrained"] = _test(strategy, benchmark.test_stream)
        for trained_on, experiences in _stages(strategy, benchmark):
            result["tries"] += tune_for(strategy, trained_on)
            _learn(strategy, experiences, cell)
            result["accuracy"][trained_on] = _test(strategy, benchmark.test_stream)
    except BLOW_UPS as error:
        result |= {"status": "diverged", "reason": str(error)}
    return result | {"probes": [Seen(view, *row) for view, plugin in probes for row in plugin.rows]}


def _benchmark(cell: Cell, **changes: Any) -> Any:
    options = cell.settings["benchmark"] | changes
    benchmark = STREAMS[options.pop("stream")](**options, seed=stream_seed(cell.seed, "stream"))
    if cell.settings["training"]["device"] == "cuda":
        keep_on_device(benchmark, "cuda", torch.cuda.mem_get_info()[0])
    return benchmark


def _impair_and_probe(cell: Cell, strategy: Any, benchmark: Any) -> list[tuple[str, ProbePlugin]]:
    """Add the cell's deficit to a strategy, before all that looks at batches, and its probes; give these."""
    deficit = deficit_plugin(cell.settings.get("deficit"), benchmark, cell.seed)
    if deficit is not None:
        strategy.plugins.insert(0, deficit)
    probes = probe_plugins(cell.settings.get("probes", []), deficit, cell.seed)
    strategy.plugins += [plugin for _, plugin in probes]
    return probes


def _learn(strategy: Any, experiences: Any, cell: Cell) -> None:
    reset = cell.settings["training"]["reset_optimizer"]
    strategy.train_epochs = epochs_of(cell.settings["training"], strategy.clock.train_exp_counter)
    strategy.train(experiences, reset_optimizer_state=reset, pin_memory=False)  # images may lie on the GPU
    for name, parameter in strategy.model.named_parameters():
        if not torch.isfinite(parameter).all():
            at = strategy.clock.train_exp_counter - 1
            raise DivergedError(f"weights of {name} are not finite after experience {at}")


def _tuner(cell: Cell, strategy: Any) -> Callable[[Any, int], list[Any]]:
    """Give what sets the strength before each experience: nothing, unless it is to be chosen continually."""
    settings = continual_option(cell.settings["strategy"])
    if settings is None:
        return lambda strategy, number: []
    unit = penalty_of(strategy).strength / settings["start"]
    held_out = _benchmark(cell, validation=cell.settings["selection"]["validation"])  # the same stream; no test data

    def accuracy_of(strategy: Any, number: int) -> float:
        strategy.plugins = [plugin for plugin in strategy.plugins if not isinstance(plugin, ProbePlugin)]
        try:
            _learn(strategy, held_out.train_stream[number], cell)
            return _test(strategy, held_out.test_stream[number])[0]
        except BLOW_UPS:
            return math.nan

    return lambda strategy, number: [tune(strategy, settings, unit, lambda copy: accuracy_of(copy, number))]


def build_strategy(cell: Cell, benchmark: Any) -> Any:
    """Build an Avalanche strategy with the cell's model, optimizer and random streams."""
    options = dict(at_start(cell.settings["strategy"]))
    model = model_for(benchmark, cell.settings["model"], stream_seed(cell.seed, "initialisation"))
    strategy = make_strategy(STRATEGIES[options.pop("name")], model, cell.settings["training"], cell.seed, **options)
    for plugin in strategy.plugins:
        if isinstance(plugin, ImportancePlugin):
            plugin.generator.manual_seed(stream_seed(cell.seed, "importance"))
    return strategy


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
