"""A run over data in memory ÷ a bare PyTorch loop over the same: what the data path and the strategies cost."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from torch import Tensor
from torch.utils.data import TensorDataset

from mas.benchmarks import Images, as_dataset
from mas.benchmarks.images import channel_statistics
from mas.experiments.build import make_strategy
from mas.experiments.cell import CellTraining
from mas.experiments.config.schema import STRATEGY_MODELS, StrategyOptions
from tools.bench.timing import ratios
from tools.bench.workloads import Workload

TARGET = 1.4
BATCH = 128
RATE = 1e-3


def measure(case: str, workload: Workload, images: int, repeats: int, device: str) -> Iterator[dict[str, Any]]:
    """Return a row for each way to train one epoch on ``images`` grey images of 28 x 28."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 1, 28, 28), generator=g, dtype=torch.uint8)
    data = Images(pixels, torch.arange(images) % 10)
    data = Images(pixels, data.labels, scale=channel_statistics(data))
    x = data.batch(torch.arange(images)).to(device)
    ours = benchmark_from_datasets(train=[as_dataset(data)]).train_stream[0]
    tensors = TensorDataset(x.cpu(), data.labels)
    theirs = nc_benchmark(tensors, tensors, 1, task_labels=False).train_stream[0]
    naive = _options({"name": "naive"})
    avalanche_naive = _options({"name": "import", "function": "avalanche.training:Naive"})
    ways = {
        "bare loop": _bare(workload, x, data.labels.to(device), device),
        "here": _strategy(naive, workload, ours, device),
        "Avalanche's Naive, data of here": _strategy(avalanche_naive, workload, ours, device),
        "Avalanche's Naive, Avalanche's data": _strategy(avalanche_naive, workload, theirs, device),
    }
    for way in ways.values():
        way()
    for name, figures in ratios(ways, repeats, device).items():
        yield {"case": case, "way": name, **figures, "target": TARGET}


def _bare(workload: Workload, x: Tensor, y: Tensor, device: str) -> Callable[[], None]:
    model = torch.nn.Sequential(torch.nn.Flatten(), workload.model(device)).train()
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)

    def epoch() -> None:
        for rows in torch.randperm(len(x), device=device).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    return epoch


def _options(given: dict[str, str]) -> StrategyOptions:
    model = STRATEGY_MODELS[given["name"]]
    return model.model_validate(given)  # type: ignore[return-value]


def _strategy(options: StrategyOptions, workload: Workload, experience: Any, device: str) -> Callable[[], None]:
    training = CellTraining(epochs=1, batch_size=BATCH, lr=RATE, device=device)
    model = torch.nn.Sequential(torch.nn.Flatten(), workload.model("cpu"))
    strategy = make_strategy(options, model, training, seed=0)
    return lambda: strategy.train(experience)
