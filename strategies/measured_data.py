"""The data that a plugin measures on, in batches, and how the model is run on a batch."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset, concat_datasets
from avalanche.models import TrainEvalModel
from avalanche.models.utils import avalanche_forward
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from mas.batches import Batch, Forward, batch_size
from mas.state import preserving_state, unwrap_model

DataName = Literal["train", "test", "both"]
AnyDataset = Dataset[Any]
Data = DataName | AnyDataset | Callable[[DatasetExperience], AnyDataset]


def check_data(data: Data) -> None:
    """Raise ValueError if ``data`` is an unknown name."""
    if isinstance(data, str) and data not in _NAMED:
        known = ", ".join(map(repr, _NAMED))
        raise ValueError(f"data is {data!r}; known are {known}, a data set or a function")


def data_of(data: Data, experience: DatasetExperience) -> AnyDataset:
    """Return the data set that ``data`` stands for in an experience."""
    found: Any = _NAMED[data] if isinstance(data, str) else data
    return found if hasattr(found, "__getitem__") else found(experience)


def data_of_all(data: Data, experiences: Sequence[DatasetExperience]) -> AnyDataset:
    """Return the data set that ``data`` stands for in several experiences that are trained as one.

    Raises:
        ValueError: the experiences belong to several tasks, and the data have no task labels.
    """
    first, *others = [data_of(data, experience) for experience in experiences]
    tasks = {task_of(experience) for experience in experiences}
    if len(tasks) > 1 and not _has_task_labels(first):
        raise ValueError("data of several tasks need task labels; pass Avalanche data sets")
    if not others or first is others[0]:
        return first
    if _has_task_labels(first):
        joined: AvalancheDataset = first
        return joined.concat(concat_datasets(others))
    return ConcatDataset([first, *others])


def train_data(experience: DatasetExperience) -> AvalancheDataset:
    """Return the training data of an experience."""
    return experience.dataset


def test_data(experience: DatasetExperience) -> AvalancheDataset:
    """Return the test data of a training experience: the experience of the same number in the test stream.

    Raises:
        ValueError: the experience does not know its benchmark.
    """
    stream = getattr(experience, "origin_stream", None)
    benchmark = getattr(stream, "benchmark", None)
    if benchmark is None:
        raise ValueError("the experience does not know its benchmark; pass its test data as data=<function of it>")
    return benchmark.test_stream[experience.current_experience].dataset


def task_of(experience: DatasetExperience) -> int:
    """Return the task label of an experience; 0 for online experiences, which have none."""
    labels = getattr(experience, "task_labels", [0])
    (task, *_) = labels
    return int(task)


class UnlabelledDict(NamedTuple):
    """A minibatch that is a dict."""

    minibatch: dict[str, Any]


class LabelledDict(NamedTuple):
    """A minibatch that is a dict, with the labels that the strategy reads from it."""

    minibatch: dict[str, Any]
    y: Tensor


def measured_batches(
    strategy: SupervisedTemplate,
    data: AnyDataset,
    *,
    max_samples: int | None,
    generator: torch.Generator,
    size: int | None = None,
) -> Iterator[Batch]:
    """Yield the samples of a data set, in evaluation transforms, on the strategy's device.

    Args:
        strategy: the strategy that the batches are for.
        data: an Avalanche data set, or another with ``len()``.
        max_samples: yield a random draw of this many samples; None for all.
        generator: used for the draw.
        size: samples per batch; by default the strategy's.
    """
    if _has_task_labels(data):
        labelled: AvalancheDataset = data
        data = labelled.eval()
    drawn = None if max_samples is None else _draw(data, max_samples, generator)
    loader: Iterable[Any] = DataLoader(
        data,
        size or strategy.train_mb_size,
        sampler=drawn,
        collate_fn=getattr(data, "collate_fn", None),
    )
    move = partial(_move, device=strategy.device)
    for minibatch in loader:
        moved = tree_map(move, _mapping_to_dict(minibatch))
        yield as_batch(strategy, moved)


def as_batch(strategy: SupervisedTemplate, minibatch: Any) -> Batch:
    """Return a minibatch of the strategy as a measure reads it: the input first, then the labels if there are any."""
    minibatch = _mapping_to_dict(minibatch)
    if isinstance(minibatch, Tensor):
        return [minibatch]
    if not isinstance(minibatch, dict):
        return list(minibatch)
    try:
        with _replaced(strategy, strategy.model, minibatch):
            return LabelledDict(minibatch, strategy.mb_y)
    except (KeyError, AssertionError, AttributeError):  # no labels in it, or the strategy does not read dicts
        return UnlabelledDict(minibatch)


def forward_for(strategy: SupervisedTemplate, data: AnyDataset, task: int) -> Forward:
    """Return the function that runs the model on `measured_batches` of ``data``, as the strategy does.

    Only a strategy with its own ``forward()`` or ``mb_x`` knows which part of a dict the model reads.
    For other strategies, the dict itself is the input.
    """
    plain = by_task_labels if _has_task_labels(data) else _with_task(task)
    return by_strategy(strategy, plain, task)


def by_strategy(strategy: SupervisedTemplate, plain: Forward, task: int = 0) -> Forward:
    """Return a function that runs the model by ``plain``, but runs it as the strategy does on dicts."""
    for_dicts = partial(_run_as_strategy, strategy) if _reads_minibatches(strategy) else _with_task(task)

    def run(model: nn.Module, batch: Batch) -> Any:
        forward = for_dicts if _is_dict(batch) else plain
        return forward(model, batch)

    return run


def by_task_labels(model: nn.Module, batch: Batch) -> Tensor:
    """Run the model on a batch whose last part is the task labels."""
    return avalanche_forward(model, batch[0], batch[-1])


@contextmanager
def explained_failures(
    strategy: SupervisedTemplate, draw: Callable[[], Iterator[Batch]], forward: Forward
) -> Iterator[None]:
    """Raise ValueError with the reason and a remedy if a measure fails because of the model's output in eval mode.

    Args:
        strategy: the strategy whose model is measured.
        draw: returns the batches that it is measured on.
        forward: from `forward_for`.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        batch = next(draw(), None)
        reason = None if batch is None else _why_unmeasurable(strategy.model, batch, forward)
        if reason is None:
            raise
        raise ValueError(reason) from error


def refuse_other_classifier(model: nn.Module) -> None:
    """Raise ValueError if the model uses another classifier in eval mode than the one that is trained."""
    inner = unwrap_model(model)
    if isinstance(inner, TrainEvalModel):
        raise ValueError(
            f"importance is measured in eval mode, in which {type(inner).__name__} (of iCaRL) answers by "
            f"{type(inner.eval_classifier).__name__} and not by the classifier that is trained; use SIPlugin, which "
            "gathers importance while training, or another strategy"
        )


def _why_unmeasurable(model: nn.Module, batch: Batch, forward: Forward) -> str | None:
    """Return why nothing can be measured on a batch; None if some output has a gradient."""
    inner = unwrap_model(model)
    name = type(inner).__name__
    try:
        with preserving_state(model), torch.enable_grad():
            outputs = tree_leaves(forward(inner, batch))
    except Exception as error:  # noqa: BLE001 - the model is the user's
        if not _is_dict(batch):
            return None
        keys = ", ".join(map(str, batch[0]))
        return (
            f"{name} does not take a minibatch that is a dict of {keys} "
            f"({type(error).__name__}: {error}); give the strategy a forward() of its own that reads self.mbatch, or "
            "data= whose items are inputs, or tuples that start with the input"
        )
    if any(isinstance(output, Tensor) and output.requires_grad for output in outputs):
        return None
    return (
        f"the output of {name} carries no gradient in eval mode, in which importance is measured; let its eval mode "
        "give what the trained layers give, or use SIPlugin, which gathers importance while training"
    )


def _with_task(task: int) -> Forward:
    """Return the function that runs the model on samples that all belong to one task."""

    def run(model: nn.Module, batch: Batch) -> Tensor:
        labels = torch.full((batch_size(batch),), task)
        return avalanche_forward(model, batch[0], labels)

    return run


def _run_as_strategy(strategy: SupervisedTemplate, model: nn.Module, batch: Batch) -> Tensor:
    """Run the strategy's ``forward()`` on a minibatch, with ``model`` in place of its own model."""
    with _replaced(strategy, model, batch[0]):
        return strategy.forward()


def _reads_minibatches(strategy: SupervisedTemplate) -> bool:
    """Return whether a strategy reads its minibatch in another way than Avalanche's supervised strategies."""
    for name in ("forward", "mb_x"):
        usual = getattr(SupervisedProblem, name)
        if getattr(type(strategy), name, usual) is not usual:
            return True
    return False


@contextmanager
def _replaced(strategy: SupervisedTemplate, model: nn.Module, minibatch: dict[str, Any]) -> Iterator[None]:
    """Replace the strategy's model and minibatch for the length of a ``with`` block."""
    model_before = strategy.model
    minibatch_before = strategy.mbatch
    strategy.model = model
    strategy.mbatch = dict(minibatch)
    try:
        yield
    finally:
        strategy.model = model_before
        strategy.mbatch = minibatch_before


def _mapping_to_dict(minibatch: Any) -> Any:
    """Return a mapping, such as a tokenizer's output, as a dict: pytrees do not look into other mappings."""
    return dict(minibatch) if isinstance(minibatch, Mapping) else minibatch


def _is_dict(batch: Batch) -> bool:
    return isinstance(batch, UnlabelledDict | LabelledDict)


def _draw(data: Any, number: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(data), generator=generator)
    return order[:number].tolist()


def _move(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device) if hasattr(leaf, "to") else leaf


def _both(experience: DatasetExperience) -> AvalancheDataset:
    """Return the training data and then the test data of an experience."""
    with warnings.catch_warnings():
        # Avalanche warns about mixed transforms; the evaluation transforms are chosen afterwards.
        warnings.simplefilter("ignore", UserWarning)
        return train_data(experience).concat(test_data(experience))


_NAMED: dict[str, Callable[[DatasetExperience], AvalancheDataset]] = {
    "train": train_data,
    "test": test_data,
    "both": _both,
}


def _has_task_labels(data: AnyDataset) -> bool:
    return hasattr(data, "targets_task_labels")
