"""Probes: measures taken on a schedule while any Avalanche strategy trains, which change nothing.

>>> probe = ProbePlugin({"trace": PROBES["fisher_trace"]}, data="train", schedule=Schedule(every=5))
>>> strategy = Naive(model, optimizer, plugins=[probe])  # doctest: +SKIP
>>> probe.rows  # after training # doctest: +SKIP
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from mas.annotations import Count, NonNegative, Positive
from mas.batches import Batch, Forward, count_correct, labels_of, with_samples
from mas.finite import check_output, check_weights
from mas.importance import Labels, fisher_importance
from mas.information import accuracy_information_curve, fisher_trace, information_in_weights
from mas.plasticity import (
    dead_units,
    dormant_units,
    effective_rank,
    features,
    gradient_norm,
    mean_weight,
    stable_rank,
    trainability,
)
from mas.state import preserving_state
from mas.strategies.samples import Data, batches, check_data, data_of_all, forward_for, task_of

Probe = Callable[[nn.Module, Sequence[Batch], Forward], float | Mapping[str, float]]

_BATCH = 500  # samples a probe sees at once


@dataclass(frozen=True)
class Schedule:
    """When to look, counted from the beginning of each experience; the beginning and the end are always looked at.

    Attributes:
        every: so many epochs or iterations; None for the end of each experience alone.
        unit: "epochs" or "iterations".
        spacing: "even", or "log": at 1, 2, 5, 10, ..., which is ``every`` = 3 looks for each factor of ten.
    """

    every: int | None = 1
    unit: Literal["epochs", "iterations"] = "epochs"
    spacing: Literal["even", "log"] = "even"

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every is {self.every}; give a number of at least 1, or None for the end alone")

    def due(self, count: int) -> bool:
        """Say whether to look after so many epochs or iterations.

        >>> [n for n in range(101) if Schedule(3, spacing="log").due(n)]
        [0, 1, 2, 5, 10, 22, 46, 100]
        """
        if self.every is None:
            return False
        if self.spacing == "even" or count == 0:
            return count % self.every == 0
        nearest = round(self.every * math.log10(count))
        return any(round(10 ** (k / self.every)) == count for k in (nearest - 1, nearest, nearest + 1))


class Row(NamedTuple):
    """What one probe gave at one time."""

    experience: int  # that is trained, counted from 0; in joint training, the last
    epoch: int  # of this experience that are done
    iteration: int  # the same
    probe: str
    part: str  # a layer, say; empty where the probe gives a single number
    value: float


class ProbePlugin(SupervisedPlugin[Any]):
    """Measure the network on a schedule.

    Args:
        probes: by name, ``probe(model, batches, forward)`` gives a number, or numbers by part. Those of
            `PROBES` or your own; options are set with `functools.partial`.
        data: what to measure on: the "train" data of the experience that is trained, the "test" data
            of the same experience, "both", a data set, or ``data(experience)``, which gives one; in joint
            training, of all its experiences.
        schedule: when.
        max_samples: measure on a random draw of that many samples, the same each time.

    Nothing but ``rows`` changes: not weights, gradients, buffers or modes, nor any random stream.

    Raises:
        FloatingPointError: while training, by each of `PROBES`: the network has diverged, or what is
            measured is not finite. It ends a cell of an experiment as diverged.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        data: Data = "train",
        schedule: Schedule = Schedule(),
        max_samples: int | None = None,
    ):
        super().__init__()
        check_data(data)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}; give a number of at least 1, or None for all")
        self.probes, self.data, self.schedule, self.max_samples = dict(probes), data, schedule, max_samples
        self.rows: list[Row] = []
        self.experience = self.epoch = self.iteration = 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Look at the network as the experience finds it."""
        self.experience, self.epoch = strategy.clock.train_exp_counter + len(_trained(strategy)) - 1, 0
        self.iteration = 0
        if self.schedule.every is not None:
            self._look(strategy)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count, and look if it is time."""
        self.iteration += 1
        if self.schedule.unit == "iterations" and self.schedule.due(self.iteration):
            self._look(strategy)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count, and look if it is time."""
        self.epoch += 1
        if self.schedule.unit == "epochs" and self.schedule.due(self.epoch):
            self._look(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Look at what the experience leaves."""
        last = self.rows[-1] if self.rows else None
        if last is None or (last.experience, last.iteration) != (self.experience, self.iteration):
            self._look(strategy)

    def _look(self, strategy: Any) -> None:
        data = data_of_all(self.data, _trained(strategy))
        forward = forward_for(strategy, data, task_of(strategy.experience))
        with preserving_state(strategy.model):
            generator = torch.Generator().manual_seed(0)
            drawn = list(batches(strategy, data, self.max_samples, generator, _BATCH))
            for name, probe in self.probes.items():
                found = probe(strategy.model, drawn, forward)
                parts = found if isinstance(found, Mapping) else {"": found}
                self.rows += [
                    Row(self.experience, self.epoch, self.iteration, name, part, float(value))
                    for part, value in parts.items()
                ]


def _trained(strategy: Any) -> Sequence[Any]:
    """Give the experience that is trained, or all of joint training."""
    return getattr(strategy, "_experiences", None) or [strategy.experience]


def accuracy(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Accuracy: the share of samples whose greatest output is that of their label.

    Raises:
        FloatingPointError: a weight or an output is not finite. -inf is accepted for some of a sample's
            outputs, as a mask of classes gives it.
    """
    right, _, seen = _answers(model, batches, forward)
    return right / seen


def loss(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Loss: mean cross-entropy, in nats.

    Raises:
        FloatingPointError: as for `accuracy`, or the loss is not finite.
    """
    _, total, seen = _answers(model, batches, forward)
    if not math.isfinite(total):
        raise FloatingPointError(f"the loss is {total / seen}; the network has diverged")
    return total / seen


def fisher_trace_probe(
    model: nn.Module, batches: Sequence[Batch], forward: Forward, labels: Labels = "exact"
) -> dict[str, float]:
    """Fisher trace of each layer, see `mas.fisher_trace`."""
    return fisher_trace(model, batches, labels=labels, forward=forward)


def information(
    model: nn.Module,
    batches: Sequence[Batch],
    forward: Forward,
    beta: Positive,
    prior_std: Positive,
    labels: Labels = "exact",
) -> dict[str, float]:
    """Information in the weights of each layer, in nats, at β and prior; see `mas.information_in_weights`."""
    fisher = fisher_importance(model, batches, labels=labels, forward=forward)
    return information_in_weights(model, fisher, beta, prior_std)


def noise_curve(
    model: nn.Module,
    batches: Sequence[Batch],
    forward: Forward,
    betas: Annotated[list[Positive], MinLen(1)],
    prior_std: Positive,
    draws: Count = 10,
) -> dict[str, float]:
    """Accuracy with the posterior's noise on the weights, and information, see `mas.accuracy_information_curve`."""
    fisher = fisher_importance(model, batches, forward=forward)
    points = accuracy_information_curve(model, batches, fisher, betas, prior_std, draws=draws, forward=forward)
    nats = {f"information beta={p.beta:g}": p.information for p in points}
    return nats | {f"accuracy beta={p.beta:g}": p.accuracy for p in points}


def dormant_units_probe(
    model: nn.Module, batches: Sequence[Batch], forward: Forward, threshold: NonNegative = 0.025
) -> dict[str, float]:
    """Share of dormant units in each layer, see `mas.dormant_units`."""
    return dormant_units(model, batches, threshold=threshold, forward=forward)


def dead_units_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> dict[str, float]:
    """Share of dead units in each layer, see `mas.dead_units`."""
    return dead_units(model, batches, forward=forward)


def effective_rank_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Effective rank of the features that the last layer is fed, see `mas.effective_rank`."""
    return effective_rank(features(model, batches, forward=forward))


def stable_rank_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Stable rank of the features that the last layer is fed, see `mas.stable_rank`."""
    return stable_rank(features(model, batches, forward=forward))


def mean_weight_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Mean of |w| over all weights; needs no data."""
    return mean_weight(model)


def gradient_norm_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Norm of the gradient of the mean loss, see `mas.gradient_norm`."""
    return gradient_norm(model, batches, forward=forward)


def trainability_probe(
    model: nn.Module, batches: Sequence[Batch], forward: Forward, steps: Count = 100, lr: Positive = 0.01
) -> float:
    """Loss after some steps on random labels, on a copy, see `mas.trainability`."""
    return trainability(model, batches, steps=steps, lr=lr, forward=forward)


PROBES: dict[str, Callable[..., float | Mapping[str, float]]] = {
    "accuracy": accuracy,
    "loss": loss,
    "fisher_trace": fisher_trace_probe,
    "information": information,
    "noise_curve": noise_curve,
    "dormant_units": dormant_units_probe,
    "dead_units": dead_units_probe,
    "effective_rank": effective_rank_probe,
    "stable_rank": stable_rank_probe,
    "mean_weight": mean_weight_probe,
    "gradient_norm": gradient_norm_probe,
    "trainability": trainability_probe,
}
"""Name in YAML -> probe; its arguments after the first three are options."""


def _answers(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> tuple[int, float, int]:
    """Count right answers, sum the loss, count samples."""
    right, total, seen = 0, 0.0, 0
    check_weights(model)  # a bias of -inf looks like a masked class
    with preserving_state(model), torch.no_grad():
        for batch in with_samples(batches):
            output, y = forward(model, batch), labels_of(batch, "this probe")
            check_output(output)
            right += count_correct(output, y)
            total += float(F.cross_entropy(output.double(), y, reduction="sum"))
            seen += len(y)
    if not seen:
        raise ValueError("batches gave no sample; give a list of batches")
    return right, total, seen
