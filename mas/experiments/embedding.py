"""Embed the experiences of a stream as tasks, by a probe network."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from mas.benchmarks import experience_names
from mas.experiments.avalanche_types import Benchmark, Data, Experience
from mas.experiments.build import draw_stream
from mas.experiments.cell import Cell, EmbeddingSettings
from mas.experiments.config.embedding import EmbeddingOptions
from mas.experiments.context import CellContext
from mas.experiments.errors import BLOW_UPS
from mas.experiments.probe_network import Shape, probe_network, shape_of
from mas.experiments.progress import StepReports, as_part
from mas.experiments.record import EmbeddingRecord, Outcome
from mas.experiments.resuming import save_outcome, saved_outcome
from mas.experiments.seeds import stream_seed
from mas.experiments.training import Trained, as_cell
from mas.task2vec import embed
from mas.task2vec.variational import STEPS

Batches = list[tuple[Tensor, Tensor]]


def embed_cell(cell: Cell, keep_weights: bool = False, context: CellContext | None = None) -> Trained:
    """Embed every experience of a cell's stream, on one thread; there are no weights to keep.

    A cell that was stopped goes on with the experience after the last one that it saved.
    """
    settings = cell.settings
    if not isinstance(settings, EmbeddingSettings):
        raise TypeError(f"{cell.id} embeds nothing: its settings are {type(settings).__name__}")
    start = time.perf_counter()
    context = context or CellContext()
    outcome = saved_outcome(context.checkpoints)
    with as_cell():
        try:
            _embed_rest(cell, settings, outcome, context)
        except BLOW_UPS as error:
            outcome.status, outcome.reason = "diverged", str(error)
    outcome.seconds = round(outcome.seconds + time.perf_counter() - start, 3)
    return Trained(outcome)


def task_batches(
    experience: Experience, options: EmbeddingOptions, shape: Shape, *, seed: int, number: int = 0
) -> Batches:
    """Return the images of an experience that are embedded, in the shape that a probe network takes, and their labels.

    Args:
        experience: of a training or a test stream.
        options: say which images.
        shape: of one image, (channels, height, width).
        seed: of the draw; it also says which part of the images is taken.
        number: of the experience; images are dealt out anew in each.
    """
    data = experience.dataset.eval()
    labels = torch.as_tensor(list(data.targets))
    chosen = _choose(labels, options, seed, number)
    batches = []
    for indices in chosen.split(options.batch_size):
        x, y, *_ = _fetch(data, indices)
        batches.append((in_shape(x, shape).to(options.device), y.to(options.device)))
    return batches


def experiences_of(benchmark: Benchmark, data: str) -> list[Experience]:
    """Return the experiences whose images are embedded: those of the stream "train" or "test"."""
    return list(benchmark.train_stream if data == "train" else benchmark.test_stream)


def _embed_rest(cell: Cell, settings: EmbeddingSettings, outcome: Outcome, context: CellContext) -> None:
    """Add the embeddings of the experiences that an outcome lacks, and the accuracy of the probe network."""
    seed = cell.seed
    stream = seed if settings.stream_seed is None else settings.stream_seed
    benchmark = draw_stream(settings.benchmark, stream)
    options = settings.embedding
    experiences = experiences_of(benchmark, options.data)
    probe, shape, outcome.probe_accuracy = probe_network(
        settings.probe_network, shape_of(benchmark), as_part(cell, "probe network", context.report)
    )
    probe = probe.to(options.device)
    names = experience_names(benchmark)
    report = StepReports(cell, len(experiences), context.report)
    for number in range(len(outcome.embeddings), len(experiences)):
        report.at(number)
        embedding = embed(
            probe,
            task_batches(experiences[number], options, shape, seed=seed, number=number),
            task=names[number],
            labels=options.labels,
            weight_decay=options.weight_decay,
            beta=options.beta,
            steps=options.steps or STEPS,
            generator=torch.Generator(options.device).manual_seed(stream_seed(seed, "embedding", number)),
        )
        outcome.embeddings.append(EmbeddingRecord.of(embedding))
        save_outcome(context.checkpoints, outcome)
    report.at(len(experiences))


def _choose(labels: Tensor, options: EmbeddingOptions, seed: int, number: int) -> Tensor:
    """Return the indices of the images that are embedded, in ascending order."""
    dealt = torch.randperm(len(labels), generator=_generator(0, "parts", number))  # the same for all seeds: no overlap
    drawn = _generator(seed, "per_class", number)
    kept = []
    for label in labels.unique():
        of_class = dealt[labels[dealt] == label]
        part = of_class[seed % options.parts :: options.parts]
        order = torch.randperm(len(part), generator=drawn)
        kept.append(part[order][: options.per_class])
    return torch.cat(kept).sort().values


def _fetch(data: Data, indices: Tensor) -> list[Tensor]:
    """Return samples of a data set as tensors."""
    if hasattr(data, "batch"):
        batch: list[Tensor] = data.batch(indices.tolist())
        return batch
    samples = [data[i] for i in indices.tolist()]
    return [torch.stack([x for x, *_ in samples]), torch.tensor([int(y) for _, y, *_ in samples])]


def in_shape(x: Tensor, shape: Shape) -> Tensor:
    """Return images, shape (N, C, H, W), with the channels and the size that a probe network takes."""
    channels, *size = shape
    if list(x.shape[2:]) != size:
        x = F.interpolate(x, size, mode="bilinear", antialias=True)
    if x.shape[1] == channels:
        return x
    grey = x.mean(1, keepdim=True)
    return grey.expand(-1, channels, -1, -1)


def _generator(seed: int, *name: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, *name))
