"""Networks that tasks are embedded by: trained once by a config, and kept in the cache by what they were made of."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import nn

from mas.benchmarks import fingerprint
from mas.benchmarks.cache import cache_folder
from mas.experiments.avalanche_types import Benchmark
from mas.experiments.build import build_benchmark, model_for
from mas.experiments.cell import Cell, CellTraining, TrainingSettings
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.config.embedding import ProbeNetwork
from mas.experiments.config.schema import STRATEGY_MODELS, Training
from mas.experiments.context import CellContext
from mas.experiments.errors import UserError
from mas.experiments.events import CellEvent, ignore
from mas.experiments.files import write_whole
from mas.experiments.networks import build_model
from mas.experiments.seeds import stream_seed
from mas.experiments.training import train_cell

Shape = tuple[int, ...]


class Probe(NamedTuple):
    """A probe network."""

    model: nn.Module
    shape: Shape  # of the images that it takes, (channels, height, width)
    accuracy: float | None  # on the test data of what it was trained on; None if it was not trained here


def probe_network(options: ProbeNetwork, shape: Sequence[int], report: Callable[[CellEvent], None] = ignore) -> Probe:
    """Return a probe network.

    A network that is to be trained is trained in the first process that needs it; others wait. It is kept in
    the cache under a digest of its settings, of its data and of the instruction set of the processor.

    Args:
        options: of the network.
        shape: of the images to embed, which a network takes that is not trained here.
        report: called with the events of its training.

    Raises:
        UserError: the training diverged.
    """
    if options.training is None:
        make_body = partial(options.model.entry, **options.model.arguments())
        return Probe(build_model(make_body, shape, [2], seed=options.seed), tuple(shape), None)
    settings = training_settings(options, options.training)
    benchmark = build_benchmark(settings, options.seed)
    model = model_for(benchmark, settings.model, stream_seed(options.seed, "initialisation"))
    trained = _trained(settings, options.seed, report)
    model.load_state_dict(trained["weights"])
    return Probe(model, shape_of(benchmark), trained["accuracy"])


def shape_of(benchmark: Benchmark) -> Shape:
    """Return the shape of one image of a benchmark, (channels, height, width)."""
    image, *_ = benchmark.train_stream[0].dataset[0]
    return tuple(image.shape)


def training_settings(options: ProbeNetwork, training: Training) -> TrainingSettings:
    """Return the settings of the cell that trains a probe network."""
    return TrainingSettings(
        experiment="probe_network",
        benchmark=options.benchmark,
        model=options.model,
        training=CellTraining(**training.model_dump()),
        strategy=STRATEGY_MODELS["naive"](),
    )


def cached_weights(settings: TrainingSettings, seed: int) -> Path:
    """Return the file that keeps a probe network's weights and accuracy, named by all that they depend on."""
    datasets = settings.benchmark.datasets_used().values()
    made_of = {
        "format": _FORMAT,
        "settings": settings.plain(),
        "seed": seed,
        "data": [fingerprint(spec) for spec in datasets],
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "probe_networks" / f"{digest[:16]}.pt"


_FORMAT = 2
"""Of the file. Format 1 held the weights alone."""


def _trained(settings: TrainingSettings, seed: int, report: Callable[[CellEvent], None]) -> dict[str, Any]:
    """Return the weights of a probe network and its accuracy, from the cache if they are there."""
    path = cached_weights(settings, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            checkpoints = Checkpoints(path.with_suffix(".checkpoints"))
            buffer = io.BytesIO()
            torch.save(_train(settings, seed, CellContext(checkpoints, report)), buffer)
            write_whole(path, buffer.getvalue())
            checkpoints.clear()
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def _train(settings: TrainingSettings, seed: int, context: CellContext) -> dict[str, Any]:
    trained = train_cell(Cell("probe_network", seed, settings), True, context)
    if not trained.outcome.finished or trained.weights is None:
        raise UserError(f"probe_network: its training diverged ({trained.outcome.reason}); lower its training.lr")
    return {"weights": trained.weights, "accuracy": trained.outcome.final_acc()}
