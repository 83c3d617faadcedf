"""A run over data in memory ÷ a bare PyTorch loop over the same: what the data path and the strategies cost."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.training import Naive as AvalancheNaive
from torch import Tensor
from torch.utils.data import TensorDataset

from mas.benchmarks import Images, as_dataset
from mas.benchmarks.images import channel_statistics
from mas.experiments.training import make_strategy
from mas.strategies import Naive
from tests.bench.timing import ratios
from tests.bench.workloads import Workload

TARGET = 1.4
BATCH = 128
TRAINING = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "batch_size": BATCH, "epochs": 1, "device": "cpu"}


def measure(case: str, workload: Workload, images: int, repeats: int, device: str) -> Iterator[dict[str, Any]]:
    """Give a row for each way to train one epoch on ``images`` grey images of 28 x 28."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 1, 28, 28), generator=g, dtype=torch.uint8)
    data = Images(pixels, torch.arange(images) % 10)
    data = Images(pixels, data.labels, scale=channel_statistics(data))
    x = data.batch(torch.arange(images)).to(device)
    ours = benchmark_from_datasets(train=[as_dataset(data)]).train_stream[0]
    tensors = TensorDataset(x.cpu(), data.labels)
    theirs = nc_benchmark(tensors, tensors, 1, task_labels=False).train_stream[0]
    training = TRAINING | {"device": device}
    ways = {
        "bare loop": _bare(workload, x, data.labels.to(device), device),
        "here": _strategy(Naive, workload, ours, training),
        "Avalanche's Naive, data of here": _strategy(AvalancheNaive, workload, ours, training),
        "Avalanche's Naive, Avalanche's data": _strategy(AvalancheNaive, workload, theirs, training),
    }
    for way in ways.values():
        way()
    for name, figures in ratios(ways, repeats, device).items():
        yield {"case": case, "way": name, **figures, "target": TARGET}


def _bare(workload: Workload, x: Tensor, y: Tensor, device: str) -> Callable[[], None]:
    model = torch.nn.Sequential(torch.nn.Flatten(), workload.model(device)).train()
    optimizer = torch.optim.Adam(model.parameters(), TRAINING["lr"], fused=True)

    def epoch() -> None:
        for rows in torch.randperm(len(x), device=device).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    return epoch


def _strategy(kind: Any, workload: Workload, experience: Any, training: dict[str, Any]) -> Callable[[], None]:
    model = torch.nn.Sequential(torch.nn.Flatten(), workload.model("cpu"))
    strategy = make_strategy(kind, model, training, seed=0)
    return lambda: strategy.train(experience)
