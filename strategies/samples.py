"""On which samples a plugin measures, and how the model is run on them."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from avalanche.benchmarks.utils import concat_datasets
from avalanche.models import TrainEvalModel
from avalanche.models.utils import avalanche_forward
from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from mas.batches import batch_size as batch_size_of
from mas.state import preserving_state, unwrap_model

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


class Unlabelled(NamedTuple):
    """A minibatch that a collate function gives as a dict."""

    minibatch: dict[str, Any]


class Labelled(NamedTuple):
    """The same, with the labels that the strategy finds in it."""

    minibatch: dict[str, Any]
    y: Any


Batch = Sequence[Any]  # what starts with the input, such as (x, y, task labels), or one of the above
Forward = Callable[[nn.Module, Batch], Any]


def batches(
    strategy: Any, data: Any, max_samples: int | None, generator: torch.Generator, batch_size: int | None = None
) -> Iterator[Batch]:
    """Give the samples, or a random draw of so many, in evaluation transforms, on the strategy's device."""
    data = data.eval() if _is_avalanche(data) else data
    drawn = None
    if max_samples is not None:
        drawn = torch.randperm(len(data), generator=generator)[:max_samples].tolist()
    size = batch_size or strategy.train_mb_size
    for batch in DataLoader(data, size, sampler=drawn, collate_fn=getattr(data, "collate_fn", None)):
        yield as_batch(strategy, tree_map(partial(_moved, device=strategy.device), _as_nest(batch)))


def as_batch(strategy: Any, minibatch: Any) -> Batch:
    """Return a minibatch of the strategy's as a measure needs it: the input first, then labels if there are any."""
    minibatch = _as_nest(minibatch)
    if isinstance(minibatch, Tensor):
        return [minibatch]
    if not isinstance(minibatch, dict):
        return list(minibatch)
    try:
        with _at_hand(strategy, strategy.model, minibatch):
            return Labelled(minibatch, strategy.mb_y)
    except (KeyError, AssertionError, AttributeError):  # it holds none, or the strategy is not one for dicts
        return Unlabelled(minibatch)


def forward_for(strategy: Any, data: Any, task: int) -> Forward:
    """Return the function that runs the model on `batches` of the data, as the strategy does.

    What the model takes of a minibatch that is a dict, only a strategy with a ``forward()`` or
    ``mb_x`` of its own knows. For other strategies the dict is the input.
    """
    plain = by_task_labels if _is_avalanche(data) else _all_of_task(task)
    return by_strategy(strategy, plain, task)


def by_strategy(strategy: Any, plain: Forward, task: int = 0) -> Forward:
    """Return ``plain``, but for minibatches that are dicts the strategy's own way to run the model, if it has one."""
    of_dicts = partial(_as_strategy_does, strategy) if _reads_minibatches(strategy) else _all_of_task(task)

    def run(model: nn.Module, batch: Batch) -> Any:
        is_dict = isinstance(batch, Unlabelled | Labelled)
        return of_dicts(model, batch) if is_dict else plain(model, batch)

    return run


def by_task_labels(model: nn.Module, batch: Batch) -> Any:
    """Run the model on a batch whose last part are the task labels."""
    return avalanche_forward(model, batch[0], batch[-1])


@contextmanager
def explaining(strategy: Any, draw: Callable[[], Iterator[Batch]], forward: Forward) -> Iterator[None]:
    """Raise ValueError with the reason and a remedy, where a measure fails because of the model's output in eval mode.

    Args:
        strategy: whose model is measured.
        draw: gives the batches that it is measured on.
        forward: of `forward_for`.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        batch = next(draw(), None)
        reason = None if batch is None else _unmeasurable(strategy.model, batch, forward)
        if reason is None:
            raise
        raise ValueError(reason) from error


def _unmeasurable(model: nn.Module, batch: Batch, forward: Forward) -> str | None:
    """Return why nothing can be measured on a batch, or None if there is an output with a gradient."""
    name = type(unwrap_model(model)).__name__
    try:
        with preserving_state(model), torch.enable_grad():
            parts = tree_leaves(forward(unwrap_model(model), batch))
    except Exception as error:  # noqa: BLE001 - the model is the user's
        if not isinstance(batch, Unlabelled | Labelled):
            return None
        return (
            f"{name} does not take a minibatch that is a dict of {', '.join(map(str, batch[0]))} "
            f"({type(error).__name__}: {error}); give the strategy a forward() of its own that reads self.mbatch, or "
            "data= whose items are inputs, or tuples that start with the input"
        )
    if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        return None
    return (
        f"the output of {name} carries no gradient in eval mode, in which importance is measured; let its eval mode "
        "give what the trained layers give, or use SIPlugin, which gathers importance while training"
    )


def refuse_other_classifier(model: nn.Module) -> None:
    """Raise ValueError for a model that answers by another classifier in eval mode than the one that is trained."""
    inner = unwrap_model(model)
    if isinstance(inner, TrainEvalModel):
        raise ValueError(
            f"importance is measured in eval mode, in which {type(inner).__name__} (of iCaRL) answers by "
            f"{type(inner.eval_classifier).__name__} and not by the classifier that is trained; use SIPlugin, which "
            "gathers importance while training, or another strategy"
        )


def _all_of_task(task: int) -> Forward:
    """Return the function that runs the model on samples that are all of one task."""
    return lambda model, batch: avalanche_forward(model, batch[0], torch.full((batch_size_of(batch),), task))


def _as_strategy_does(strategy: Any, model: nn.Module, batch: Batch) -> Any:
    """Run the strategy's ``forward()`` on a minibatch, with ``model`` in the place of its model."""
    with _at_hand(strategy, model, batch[0]):
        return strategy.forward()


def _reads_minibatches(strategy: Any) -> bool:
    """Tell whether a strategy finds the input in a minibatch in another way than Avalanche's supervised ones."""
    for name in ("forward", "mb_x"):
        usual = getattr(SupervisedProblem, name)
        if getattr(type(strategy), name, usual) is not usual:
            return True
    return False


@contextmanager
def _at_hand(strategy: Any, model: nn.Module, minibatch: dict[str, Any]) -> Iterator[None]:
    """Let a strategy have another model and minibatch for the length of a ``with`` block."""
    before = strategy.model, strategy.mbatch
    strategy.model, strategy.mbatch = model, dict(minibatch)
    try:
        yield
    finally:
        strategy.model, strategy.mbatch = before


def _as_nest(batch: Any) -> Any:
    """Return a mapping that is no dict, such as a tokenizer's output, as one: only dicts are looked into."""
    return dict(batch) if isinstance(batch, Mapping) else batch


def _moved(leaf: Any, device: Any) -> Any:
    return leaf.to(device) if hasattr(leaf, "to") else leaf


def _both(experience: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of mixed transforms; those of evaluation are set afterwards
        return train_data(experience).concat(test_data(experience))


_NAMED: dict[str, Callable[[Any], Any]] = {"train": train_data, "test": test_data, "both": _both}


def _is_avalanche(data: Any) -> bool:
    return hasattr(data, "targets_task_labels")
