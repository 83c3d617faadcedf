"""On which samples a plugin measures, and how the model is run on them."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from avalanche.benchmarks.utils import concat_datasets
from avalanche.models.utils import avalanche_forward
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

DataName = Literal["train", "test", "both"]
Data = DataName | Dataset[Any] | Callable[[Any], Dataset[Any]]


def check_data(data: Data) -> None:
    """Raise ValueError for a name that is not known."""
    if isinstance(data, str) and data not in _NAMED:
        raise ValueError(f"data is {data!r}; known are {', '.join(map(repr, _NAMED))}, a data set or a function")


def data_of(data: Data, experience: Any) -> Any:
    """Give the data set that ``data`` means for an experience."""
    made: Any = _NAMED[data] if isinstance(data, str) else data
    return made if hasattr(made, "__getitem__") else made(experience)


def data_of_all(data: Data, experiences: Sequence[Any]) -> Any:
    """Give the data set that ``data`` means for several experiences, trained as one.

    Raises:
        ValueError: the experiences are of several tasks, and the data do not say of which each sample is.
    """
    first, *others = (data_of(data, experience) for experience in experiences)
    if not _is_avalanche(first) and len({task_of(experience) for experience in experiences}) > 1:
        raise ValueError("data of several tasks need their task labels; give data sets of Avalanche's")
    if not others or first is others[0]:
        return first
    return first.concat(concat_datasets(others)) if _is_avalanche(first) else ConcatDataset([first, *others])


def train_data(experience: Any) -> Any:
    """Give what an experience trains on."""
    return experience.dataset


def test_data(experience: Any) -> Any:
    """Give the test data of a training experience: those of the same number in its benchmark.

    Raises:
        ValueError: the experience does not know its benchmark.
    """
    benchmark = getattr(getattr(experience, "origin_stream", None), "benchmark", None)
    if benchmark is None:
        raise ValueError("the experience does not know its benchmark; give its test data by data=<function of it>")
    return benchmark.test_stream[experience.current_experience].dataset


def task_of(experience: Any) -> int:
    """Give the task label of an experience; online ones have none, and get 0."""
    (task, *_) = getattr(experience, "task_labels", [0])
    return int(task)


def batches(
    strategy: Any, data: Any, max_samples: int | None, generator: torch.Generator, batch_size: int | None = None
) -> Iterator[list[Tensor]]:
    """Give the samples, or a random draw of so many, in evaluation transforms, on the strategy's device."""
    data = data.eval() if _is_avalanche(data) else data
    drawn = None
    if max_samples is not None:
        drawn = torch.randperm(len(data), generator=generator)[:max_samples].tolist()
    size = batch_size or strategy.train_mb_size
    for batch in DataLoader(data, size, sampler=drawn, collate_fn=getattr(data, "collate_fn", None)):
        parts = [batch] if isinstance(batch, Tensor) else batch
        yield [tensor.to(strategy.device) for tensor in parts]


def forward_for(data: Any, task: int) -> Callable[[nn.Module, list[Tensor]], Any]:
    """Run the model as Avalanche's strategies do, where task labels go along."""
    if _is_avalanche(data):
        return by_task_labels
    return lambda model, batch: avalanche_forward(model, batch[0], torch.full((len(batch[0]),), task))


def by_task_labels(model: nn.Module, batch: list[Tensor]) -> Any:
    """Run the model on a batch whose last part are the task labels."""
    return avalanche_forward(model, batch[0], batch[-1])


def _both(experience: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of mixed transforms; those of evaluation are set afterwards
        return train_data(experience).concat(test_data(experience))


_NAMED: dict[str, Callable[[Any], Any]] = {"train": train_data, "test": test_data, "both": _both}


def _is_avalanche(data: Any) -> bool:
    return hasattr(data, "targets_task_labels")
