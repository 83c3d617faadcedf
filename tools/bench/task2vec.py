"""Task2Vec embedding of a task ÷ one plain forward and backward epoch, head fitting apart."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor, nn

from mas import fisher_importance
from mas.batches import run_forward
from mas.task2vec.filters import filters_of
from mas.task2vec.head import class_numbers, features_of, find_head, fit_head
from tools.bench.passes import Data, plain
from tools.bench.timing import ratios
from tools.bench.workloads import Workload

TARGET = 1.6
EMBEDDING = "embedding, Hutchinson"


def measure(workloads: dict[str, Workload], repeats: int, device: str) -> Iterator[dict[str, Any]]:
    """Return a row for each workload and for the plain pass, the embedding, and what comes before it.

    The ratio does not depend on the number of images, so that a few batches stand for a task of 10,000: a
    pass over each image is all that either side does.
    """
    for case, workload in workloads.items():
        model, data = workload.model(device), workload.data(device)
        ways: dict[str, Callable[[], Any]] = {
            "plain pass": partial(plain, model, data),
            EMBEDDING: _embedding(model, data),
            "features and head": partial(_features_and_head, model, data),
        }
        for way in ways.values():
            way()
        for name, figures in ratios(ways, repeats, device).items():
            yield {"case": case, "way": name, **figures, "target": TARGET if name == EMBEDDING else None}


def _embedding(model: nn.Module, data: Data) -> Callable[[], Tensor]:
    """Return what `mas.embed` does once the head is fitted."""
    probe = deepcopy(model).eval()
    filters = filters_of(probe, find_head(probe, data[0], None))
    return lambda: filters.mean(fisher_importance(probe, data, labels="hutchinson"))


def _features_and_head(model: nn.Module, data: Data) -> nn.Linear:
    y, names = class_numbers(data)
    features = features_of(model, find_head(model, data[0], None), data, run_forward)
    return fit_head(features, y, len(names), 1e-3)
