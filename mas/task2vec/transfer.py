"""What it costs to go from one task to another: fine-tuning measured, to hold distances against."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mas.batches import Batch, Forward, count_correct, run_forward
from mas.finite import check_finite, check_weights
from mas.state import preserving_state, unwrap_model
from mas.task2vec.head import (
    class_numbers,
    features_of,
    find_head,
    fit_head,
    known_numbers,
    put_head,
    samples_of,
    with_labels,
    zero_head,
)


@dataclass(frozen=True)
class Reachability:
    """What fine-tuning came to.

    Attributes:
        steps: after which the accuracy was measured, from 0 to the last.
        accuracies: on the test batches after these steps, from 0 to 1.
        steps_to_accuracy: the first of ``steps`` with the stated accuracy; None if no step has it, or none was stated.
    """

    steps: tuple[int, ...]
    accuracies: tuple[float, ...]
    steps_to_accuracy: int | None

    @property
    def accuracy(self) -> float:
        """The accuracy after the last step."""
        return self.accuracies[-1]


def reachability(
    model: nn.Module,
    train: Sequence[Batch],
    test: Sequence[Batch],
    *,
    steps: int,
    lr: float,
    head: str | None = None,
    optimizer: Literal["sgd", "adam"] = "sgd",
    momentum: float = 0.9,
    frozen: bool = False,
    accuracy: float | None = None,
    every: int = 10,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
) -> Reachability:
    """Return what fine-tuning a network on a new task costs, in steps or in accuracy.

    A copy of the network gets a new head with weights of 0, and is trained on the mean cross-entropy of one
    batch a step. The network and the global random streams are left as they were.

    Args:
        model: a network that was trained on another task.
        train: batches of ``(x, y, ...)``, gone through in a new random order each time.
        test: batches of the same classes.
        steps: to train for.
        lr: learning rate, constant.
        head: the name of the module to replace; by default the last one that is called.
        optimizer: "sgd" (with momentum) or "adam".
        momentum: of SGD.
        frozen: train the head alone, on features of eval mode. Otherwise the whole copy is trained in train mode.
        accuracy: stated accuracy on ``test``, from 0 to 1, for `Reachability.steps_to_accuracy`.
        every: steps from one test to the next; there is one after the last step, and one at step 0, where the head
            gives every sample the first class.
        forward: ``forward(model, batch)`` returns the logits; by default ``model(x)``.
        generator: draws the order of batches, and a seed for layers such as dropout; by default a
            new one, seeded 0, so that equal calls return equal results.

    Raises:
        ValueError: an option out of bounds, no sample, labels that are missing or of one class only, a class in
            ``test`` that ``train`` lacks, or no head found.
        FloatingPointError: the loss is not finite.
    """
    _check_options(steps, every, optimizer)
    if not lr > 0 or not 0 <= momentum < 1:
        raise ValueError(f"lr is {lr} and momentum {momentum}; give lr above 0, and momentum from 0 to below 1")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy}; give a share from 0 to 1")
    generator = generator or torch.Generator().manual_seed(0)
    run = forward or run_forward
    train, test, classes = _same_classes(train, test)
    copy = deepcopy(unwrap_model(model)).requires_grad_(not frozen)
    name = head or find_head(copy, train[0], forward)
    width = features_of(copy, name, train[:1], run).shape[1]
    put_head(copy, name, zero_head(width, classes))
    trained = [p for p in copy.parameters() if p.requires_grad]
    rule = _make_optimizer(optimizer, trained, lr, momentum)
    accuracies = {}
    with preserving_state(copy), torch.enable_grad():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        copy.train(not frozen)
        accuracies[0] = _accuracy(copy, test, run)
        for step, batch in enumerate(islice(_in_random_order(train, generator), steps), 1):
            loss = _loss(copy, batch, run)
            check_finite(loss.detach(), f"the loss at step {step} of fine-tuning (lr {lr})")
            rule.zero_grad()
            loss.backward()
            rule.step()
            if step % every == 0 or step == steps:
                check_weights(copy)
                accuracies[step] = _accuracy(copy, test, run)
    reached = [step for step, found in accuracies.items() if accuracy is not None and found >= accuracy]
    return Reachability(tuple(accuracies), tuple(accuracies.values()), min(reached, default=None))


def head_accuracy(
    model: nn.Module,
    train: Sequence[Batch],
    test: Sequence[Batch],
    *,
    head: str | None = None,
    weight_decay: float = 1e-3,
    forward: Forward | None = None,
) -> float:
    """Return the test accuracy, from 0 to 1, of a head that is fitted on frozen features, as `mas.embed` fits it.

    Args:
        model: the network; it is left as it was.
        train: batches of ``(x, y, ...)``.
        test: batches of the same classes.
        head, weight_decay, forward: as for `mas.embed`.

    Raises:
        ValueError: as `reachability`, or weight_decay is not above 0.
    """
    run = forward or run_forward
    train, test, classes = _same_classes(train, test)
    body = unwrap_model(model)
    name = head or find_head(body, train[0], forward)
    labels = torch.cat([batch[1] for batch in train])
    fitted = fit_head(features_of(body, name, train, run), labels, classes, weight_decay)
    test_labels = torch.cat([batch[1] for batch in test])
    logits = fitted(features_of(body, name, test, run))
    return count_correct(logits, test_labels) / len(test_labels)


def _check_options(steps: int, every: int, optimizer: str) -> None:
    if steps < 1 or every < 1:
        raise ValueError(f"steps is {steps} and every {every}; give numbers above 0")
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f"optimizer is {optimizer!r}; known are 'sgd', 'adam'")


def _same_classes(train: Sequence[Batch], test: Sequence[Batch]) -> tuple[list[Batch], list[Batch], int]:
    """Return both with labels from 0, and the number of classes of ``train``."""
    train, test = samples_of(train, "train"), samples_of(test, "test")
    train_y, names = class_numbers(train)
    test_y = known_numbers(test, names)
    return with_labels(train, train_y), with_labels(test, test_y), len(names)


def _make_optimizer(name: str, trained: list[nn.Parameter], lr: float, momentum: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(trained, lr)
    return torch.optim.SGD(trained, lr, momentum=momentum)


def _in_random_order(batches: Sequence[Batch], generator: torch.Generator) -> Iterator[Batch]:
    """Yield all batches in a random order, again and again."""
    while True:
        for position in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[position]


def _loss(model: nn.Module, batch: Batch, run: Forward) -> Tensor:
    logits = run(model, batch)
    return F.cross_entropy(logits, batch[1].to(logits.device))


def _accuracy(model: nn.Module, batches: Sequence[Batch], run: Forward) -> float:
    with preserving_state(model), torch.no_grad():
        correct = sum(count_correct(run(model, batch), batch[1]) for batch in batches)
    return correct / sum(len(batch[1]) for batch in batches)
