"""Networks that tasks are embedded by: trained once by a config, and kept in the cache by what they were made of."""

import hashlib
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from mas.benchmarks import fingerprint
from mas.benchmarks.cache import cache_folder
from mas.experiments.avalanche_types import Benchmark
from mas.experiments.build import build_benchmark, model_for
from mas.experiments.cell import Cell, CellTraining, TrainingSettings
from mas.experiments.config.embedding import ProbeNetwork
from mas.experiments.config.schema import STRATEGY_MODELS, Training
from mas.experiments.errors import UserError
from mas.experiments.files import write_whole
from mas.experiments.networks import build_model
from mas.experiments.seeds import stream_seed
from mas.experiments.training import train_cell

Shape = tuple[int, ...]


def probe_network(options: ProbeNetwork, shape: Sequence[int]) -> tuple[nn.Module, Shape]:
    """Return a probe network, and the shape of the images that it takes.

    A network that is to be trained is trained in the first process that needs it; others wait. It is kept in
    the cache under a digest of its settings, of its data and of the instruction set of the processor.

    Args:
        options: of the network.
        shape: of the images to embed, which a network takes that is not trained here.

    Raises:
        UserError: the training diverged.
    """
    if options.training is None:
        make_body = partial(options.model.entry, **options.model.arguments())
        return build_model(make_body, shape, [2], seed=options.seed), tuple(shape)
    settings = training_settings(options, options.training)
    benchmark = build_benchmark(settings, options.seed)
    model = model_for(benchmark, settings.model, stream_seed(options.seed, "initialisation"))
    model.load_state_dict(_trained_weights(settings, options.seed))
    return model, shape_of(benchmark)


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
    """Return the file that keeps the weights of a probe network: it depends on all that the weights depend on."""
    datasets = settings.benchmark.datasets_used().values()
    made_of = {
        "settings": settings.plain(),
        "seed": seed,
        "data": [fingerprint(spec) for spec in datasets],
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "probe_networks" / f"{digest[:16]}.pt"


def _trained_weights(settings: TrainingSettings, seed: int) -> dict[str, Tensor]:
    path = cached_weights(settings, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            weights = _train(settings, seed)
            buffer = io.BytesIO()
            torch.save(weights, buffer)
            write_whole(path, buffer.getvalue())
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def _train(settings: TrainingSettings, seed: int) -> dict[str, Tensor]:
    trained = train_cell(Cell("probe_network", seed, settings), keep_weights=True)
    if not trained.outcome.finished or trained.weights is None:
        raise UserError(f"probe_network: its training diverged ({trained.outcome.reason}); lower its training.lr")
    return trained.weights
