"""Build everything of a config once, in small: only that shows what the data hold, and whether all parts fit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from avalanche.models.dynamic_modules import avalanche_model_adaptation
from torch import nn

from mas.benchmarks import DATASETS, DeficitPlugin, experience_names, make_deficit
from mas.experiments.build import make_strategy, model_for, optimizer_for
from mas.experiments.cell import CellSettings, CellTraining, TrainingSettings
from mas.experiments.config.embedding import EmbeddingOptions, ProbeNetwork
from mas.experiments.config.schema import (
    DeficitOptions,
    Experiment,
    ProbeOptions,
    ScheduledDeficit,
    Selection,
    StrategyOptions,
    StreamOptions,
    TrainingExperiment,
    parts_of,
)
from mas.experiments.config.yaml_source import Key, Source, nearest
from mas.experiments.embedding import experiences_of
from mas.experiments.errors import UserError
from mas.experiments.options import ImportedOptions
from mas.experiments.probe_network import probe_network, shape_of
from mas.imports import IMPORT, check_origin
from mas.strategies.measured_data import by_task_labels


def try_training(config: TrainingExperiment, every: Sequence[CellSettings], source: Source) -> None:
    """Build benchmark, network and strategies once, impair a batch, and take each probe of a few samples.

    Args:
        config: whose parts are built.
        every: the settings of its cells; those that train nothing are left out.
        source: of the config.

    Raises:
        UserError: where in the config the mistake is, and what it is.
    """
    benchmark = try_benchmark(config.benchmark, ("benchmark",), source)
    with errors_at(source, ("model",)):
        model = model_for(benchmark, config.model, seed=0)
    _try_epochs(config, benchmark, every, source)
    with errors_at(source, ("training", "optimizer")):
        optimizer_for(model, config.training)
    _try_smallest_batch(config, benchmark, model, source)
    _try_strategies(config, model, source)
    _try_loss(config, benchmark, model, source)
    _try_deficits(config, benchmark, source)
    _try_probes(config, benchmark, model, source)


def check_imports(config: Experiment, source: Source) -> None:
    """Raise UserError if a function of the user's own cannot be imported, or does not take its options."""
    for place, options in parts_of(config, ImportedOptions):
        with errors_at(source, place):
            options.check()
            if source.path is not None:
                check_origin(options.function, source.path.parent)


def check_datasets(config: Experiment, source: Source) -> None:
    """Raise UserError if a stream has a data set of an unknown name."""
    for outer, stream in parts_of(config, StreamOptions):
        for place, spec in stream.datasets_used().items():
            name = spec.get("name") if isinstance(spec, dict) else spec
            if name not in (*DATASETS, IMPORT):
                inner = (*place, "name") if isinstance(spec, dict) else place
                found = f"found {name!r}{nearest(str(name), list(DATASETS))}"
                raise UserError(f"{source.where((*outer, *inner))}: {found}; allowed: {', '.join(DATASETS)}")


def try_benchmark(stream: StreamOptions, place: Key, source: Source) -> Any:
    """Return the benchmark of a stream, made with seed 0; raise UserError, with its place, if that fails."""
    with errors_at(source, place):
        benchmark = stream.entry(**stream.arguments(), seed=0)
        if not hasattr(benchmark, "train_stream"):
            raise ValueError(f"the stream is a {type(benchmark).__name__}; expected a benchmark of Avalanche")
    return benchmark


def try_probe_network(options: ProbeNetwork, benchmark: Any, place: Key, source: Source) -> None:
    """Raise UserError if a probe network cannot be built, or does not take the images of a benchmark.

    It is not trained here: that may take hours.
    """
    if options.training is None or options.benchmark is None:
        with errors_at(source, (*place, "model")):
            probe_network(options, shape_of(benchmark))
        return
    trained_on = try_benchmark(options.benchmark, (*place, "benchmark"), source)
    with errors_at(source, (*place, "model")):
        model = model_for(trained_on, options.model, seed=0)
    with errors_at(source, (*place, "training", "optimizer")):
        optimizer_for(model, options.training)


def try_tasks(benchmark: Any, options: EmbeddingOptions, place: Key, source: Source) -> None:
    """Raise UserError if an experience cannot be embedded: it has one class, or too few images for the parts.

    Args:
        benchmark: of the stream.
        options: of the embedding.
        place: of the stream in the config.
        source: of the config.
    """
    experiences = experiences_of(benchmark, options.data)
    for name, experience in zip(experience_names(benchmark), experiences, strict=True):
        labels, counts = torch.as_tensor(list(experience.dataset.targets)).unique(return_counts=True)
        if len(labels) < 2:
            where = source.where(place)
            raise UserError(f"{where}: found task {name!r} with one class; a task to embed has two classes or more")
        fewest = int(counts.min())
        if fewest < options.parts:
            raise UserError(
                f"{source.where(('embedding', 'parts'))}: found {options.parts}, but a class of task {name!r} has "
                f"{fewest} {options.data} images; allowed: at most {fewest}"
            )


def try_held_out(config: TrainingExperiment, selection: Selection, source: Source) -> None:
    """Raise UserError if values are to be chosen and the data to choose them by cannot be held out."""
    chooses = config.searches or any(s.continual_choice for _, s in parts_of(config, StrategyOptions))
    if chooses:
        with errors_at(source, ("selection", "validation")):
            held_out = config.benchmark.holding_out(selection.validation)
            held_out.entry(**held_out.arguments(), seed=0)


def _try_epochs(config: TrainingExperiment, benchmark: Any, every: Sequence[CellSettings], source: Source) -> None:
    size, epochs = len(benchmark.train_stream), config.training.epochs
    if not isinstance(epochs, int) and len(epochs) != size:
        where = source.where(("training", "epochs"))
        raise UserError(f"{where}: found {len(epochs)} numbers; allowed: one for all, or {size}")
    with errors_at(source, ("training", "schedule")):
        for settings in every:
            if isinstance(settings, TrainingSettings):
                settings.training.rate_factor(settings.training.longest_epochs() - 1)


def _try_smallest_batch(config: TrainingExperiment, benchmark: Any, model: nn.Module, source: Source) -> None:
    """Raise UserError if a last batch of one image is too small for the model, as it is for BatchNorm."""
    size = config.training.batch_size
    alone = next((e for e in benchmark.train_stream if len(e.dataset) % size == 1), None)
    if alone is None:
        return
    one = deepcopy(model).train()
    avalanche_model_adaptation(one, alone)
    try:
        by_task_labels(one, alone.dataset.eval().batch([0]))
    except ValueError:
        where, number = source.where(("training", "batch_size")), len(alone.dataset)
        raise UserError(
            f"{where}: found {size}, which leaves a last batch of 1 of {number} images, too few for BatchNorm; "
            "choose another"
        ) from None


def _try_loss(config: TrainingExperiment, benchmark: Any, model: nn.Module, source: Source) -> None:
    batch = _few(benchmark)
    loss = config.training.loss
    one = deepcopy(model).train()
    avalanche_model_adaptation(one, benchmark.train_stream[0])  # a growing head has no classes before
    with errors_at(source, ("training", "loss")):
        loss.entry(by_task_labels(one.eval(), batch), batch[1], **loss.arguments())


def _try_strategies(config: TrainingExperiment, model: nn.Module, source: Source) -> None:
    training = CellTraining(**config.training.model_dump() | {"device": "cpu"})
    for place, options in parts_of(config, StrategyOptions):
        with errors_at(source, place):
            for one in options.each_strength():
                make_strategy(one, model, training, 0)


def _try_deficits(config: TrainingExperiment, benchmark: Any, source: Source) -> None:
    """Apply each deficit to a small batch, and check that scheduled deficits end within the training."""
    x, y, *_ = _few(benchmark)
    for place, deficit in parts_of(config, DeficitOptions):
        with errors_at(source, place):
            make_deficit(deficit.spec(), int(y.max()) + 1)(x, y, torch.Generator())
    size = len(benchmark.train_stream)
    for place, deficit in parts_of(config, ScheduledDeficit):
        total = sum(config.training.epochs_of(t) for t in range(size))
        with errors_at(source, place):
            DeficitPlugin(lambda x, y, generator: (x, y), deficit.start, deficit.end, epochs=total)


def _try_probes(config: TrainingExperiment, benchmark: Any, model: nn.Module, source: Source) -> None:
    avalanche_model_adaptation(model.train(), benchmark.train_stream[0])  # a growing head has no classes before
    for place, probe in parts_of(config, ProbeOptions):
        with errors_at(source, place):
            probe.entry(model, [_few(benchmark)], by_task_labels, **probe.arguments())


def _few(benchmark: Any) -> list[Any]:
    data = benchmark.train_stream[0].dataset.eval()
    return data.batch(range(min(8, len(data))))


@contextmanager
def errors_at(source: Source, place: Key) -> Iterator[None]:
    """Raise UserError, with the place in the config, for an error of the code inside."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, FloatingPointError) as error:  # a probe may blow up
        raise UserError(f"{source.where(place)}: {_in_one_line(error)}") from None
    except Exception as error:  # torch, and functions of the user's own, may raise anything
        raise UserError(f"{source.where(place)}: {type(error).__name__}: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
