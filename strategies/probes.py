"""Probes: measures that are taken on a schedule while an Avalanche strategy trains, and change nothing.

>>> probe = ProbePlugin({"trace": PROBES["fisher_trace"]}, data="train", schedule=Schedule(every=5))
>>> strategy = Naive(model, optimizer, plugins=[probe])  # doctest: +SKIP
>>> probe.rows  # after training # doctest: +SKIP
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from avalanche.benchmarks import DatasetExperience
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
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
from mas.strategies.measured_data import Data, check_data, data_of_all, forward_for, measured_batches, task_of

Found = float | Mapping[str, float]  # one number, or numbers by part
Probe = Callable[[nn.Module, Sequence[Batch], Forward], Found]

_BATCH_SIZE = 500


@dataclass(frozen=True)
class Schedule:
    """When to measure, counted from the beginning of each experience.

    Each experience is also measured at its end and, unless ``every`` is None, at its beginning.

    Attributes:
        every: number of epochs or iterations between two measurements; None measures only at the end.
        unit: "epochs" or "iterations".
        spacing: "even", or "log": at 1, 2, 5, 10, ..., which is ``every`` = 3 measurements per factor of ten.
    """

    every: int | None = 1
    unit: Literal["epochs", "iterations"] = "epochs"
    spacing: Literal["even", "log"] = "even"

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every is {self.every}; give a number of at least 1, or None for the end alone")

    def due(self, count: int) -> bool:
        """Return whether to measure after ``count`` epochs or iterations.

        >>> [n for n in range(101) if Schedule(3, spacing="log").due(n)]
        [0, 1, 2, 5, 10, 22, 46, 100]
        """
        if self.every is None:
            return False
        if self.spacing == "even" or count == 0:
            return count % self.every == 0
        nearest = round(self.every * math.log10(count))
        candidates = (nearest - 1, nearest, nearest + 1)
        return any(count == round(10 ** (k / self.every)) for k in candidates)


class ProbeRow(NamedTuple):
    """One value that one probe measured at one time."""

    experience: int  # in training, counted from 0; in joint training, the last
    epoch: int  # finished in this experience
    iteration: int  # the same
    probe: str
    part: str  # such as a layer; empty if the probe returns a single number
    value: float


class ProbePlugin(SupervisedPlugin):
    """Measure the network on a schedule.

    Args:
        probes: functions by name; ``probe(model, batches, forward)`` returns a number, or numbers by part.
            Use those of `PROBES` or your own; set options with `functools.partial`.
        data: what to measure on: the "train" data of the experience in training, the "test" data
            of the same experience, "both", a data set, or ``data(experience)``, which returns one; in joint
            training, of all its experiences.
        schedule: when to measure.
        max_samples: measure on a random draw of this many samples, the same each time.

    Only ``rows`` changes: weights, gradients, buffers, modes and all random streams stay as they are.

    Raises:
        FloatingPointError: while training, by each of `PROBES`: the network has diverged, or the measured
            value is not finite. It ends a cell of an experiment as diverged.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        data: Data = "train",
        *,
        schedule: Schedule = Schedule(),
        max_samples: int | None = None,
    ):
        super().__init__()
        check_data(data)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}; give a number of at least 1, or None for all")
        self.probes = dict(probes)
        self.data = data
        self.schedule = schedule
        self.max_samples = max_samples
        self.rows: list[ProbeRow] = []
        self.experience = 0
        self.epoch = 0
        self.iteration = 0

    def before_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Measure before the first step of an experience."""
        self.experience = strategy.clock.train_exp_counter + len(_in_training(strategy)) - 1
        self.epoch = 0
        self.iteration = 0
        if self.schedule.every is not None:
            self._measure(strategy)

    def after_training_iteration(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Count the iteration, and measure if it is due."""
        self.iteration += 1
        if self.schedule.unit == "iterations" and self.schedule.due(self.iteration):
            self._measure(strategy)

    def after_training_epoch(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Count the epoch, and measure if it is due."""
        self.epoch += 1
        if self.schedule.unit == "epochs" and self.schedule.due(self.epoch):
            self._measure(strategy)

    def after_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Measure at the end of an experience, unless its last step was measured."""
        last = self.rows[-1] if self.rows else None
        measured = last is not None and (last.experience, last.iteration) == (self.experience, self.iteration)
        if not measured:
            self._measure(strategy)

    def _measure(self, strategy: SupervisedTemplate) -> None:
        data = data_of_all(self.data, _in_training(strategy))
        forward = forward_for(strategy, data, task_of(strategy.experience))
        with preserving_state(strategy.model):
            generator = torch.Generator().manual_seed(0)
            drawn = measured_batches(
                strategy, data, max_samples=self.max_samples, generator=generator, size=_BATCH_SIZE
            )
            batches = list(drawn)
            for name, probe in self.probes.items():
                self._append(name, probe(strategy.model, batches, forward))

    def _append(self, name: str, found: Found) -> None:
        parts = found if isinstance(found, Mapping) else {"": found}
        for part, value in parts.items():
            self.rows.append(ProbeRow(self.experience, self.epoch, self.iteration, name, part, float(value)))


def _in_training(strategy: SupervisedTemplate) -> Sequence[DatasetExperience]:
    """Return the experience in training, or all experiences of joint training."""
    return getattr(strategy, "_experiences", None) or [strategy.experience]


def accuracy(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Accuracy: the share of samples whose largest output is that of their label.

    Raises:
        FloatingPointError: a weight or an output is not finite. -inf is accepted for some of a sample's
            outputs, since masks of classes set it.
    """
    counts = _predict(model, batches, forward)
    return counts.right / counts.samples


def loss(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Loss: mean cross-entropy, in nats.

    Raises:
        FloatingPointError: as for `accuracy`, or the loss is not finite.
    """
    counts = _predict(model, batches, forward)
    mean = counts.loss / counts.samples
    if not math.isfinite(counts.loss):
        raise FloatingPointError(f"the loss is {mean}; the network has diverged")
    return mean


def fisher_trace_probe(
    model: nn.Module, batches: Sequence[Batch], forward: Forward, *, labels: Labels = "exact"
) -> dict[str, float]:
    """Fisher trace of each layer, see `mas.fisher_trace`."""
    return fisher_trace(model, batches, labels=labels, forward=forward)


def information(
    model: nn.Module,
    batches: Sequence[Batch],
    forward: Forward,
    *,
    beta: Positive,
    prior_std: Positive,
    labels: Labels = "exact",
) -> dict[str, float]:
    """Information in the weights of each layer, in nats, at β and prior; see `mas.information_in_weights`."""
    fisher = fisher_importance(model, batches, labels=labels, forward=forward)
    return information_in_weights(model, fisher, beta=beta, prior_std=prior_std)


def noise_curve(
    model: nn.Module,
    batches: Sequence[Batch],
    forward: Forward,
    *,
    betas: Annotated[list[Positive], MinLen(1)],
    prior_std: Positive,
    draws: Count = 10,
) -> dict[str, float]:
    """Accuracy under the posterior's noise on the weights, and information, see `mas.accuracy_information_curve`."""
    fisher = fisher_importance(model, batches, labels="exact", forward=forward)
    points = accuracy_information_curve(
        model, batches, fisher=fisher, betas=betas, prior_std=prior_std, draws=draws, forward=forward
    )
    informations = {f"information beta={point.beta:g}": point.information for point in points}
    accuracies = {f"accuracy beta={point.beta:g}": point.accuracy for point in points}
    return informations | accuracies


def dormant_units_probe(
    model: nn.Module, batches: Sequence[Batch], forward: Forward, *, threshold: NonNegative = 0.025
) -> dict[str, float]:
    """Share of dormant units in each layer, see `mas.dormant_units`."""
    return dormant_units(model, batches, threshold=threshold, forward=forward)


def dead_units_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> dict[str, float]:
    """Share of dead units in each layer, see `mas.dead_units`."""
    return dead_units(model, batches, forward=forward)


def effective_rank_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Effective rank of the features that enter the last layer, see `mas.effective_rank`."""
    return effective_rank(features(model, batches, forward=forward))


def stable_rank_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Stable rank of the features that enter the last layer, see `mas.stable_rank`."""
    return stable_rank(features(model, batches, forward=forward))


def mean_weight_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Mean of |w| over all weights; uses no data."""
    return mean_weight(model)


def gradient_norm_probe(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    """Norm of the gradient of the mean loss, see `mas.gradient_norm`."""
    return gradient_norm(model, batches, forward=forward)


def trainability_probe(
    model: nn.Module, batches: Sequence[Batch], forward: Forward, *, steps: Count = 100, lr: Positive = 0.01
) -> float:
    """Loss of a copy after some steps on random labels, see `mas.trainability`."""
    return trainability(model, batches, steps=steps, lr=lr, forward=forward)


PROBES: dict[str, Callable[..., Found]] = {
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
"""Name in YAML -> probe. Its arguments after the first three are options."""


@dataclass
class _Predictions:
    right: int = 0
    loss: float = 0.0  # summed over samples
    samples: int = 0


def _predict(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> _Predictions:
    """Count right predictions and samples, and sum the cross-entropy."""
    counts = _Predictions()
    check_weights(model)  # a bias of -inf looks like a masked class
    with preserving_state(model), torch.no_grad():
        for batch in with_samples(batches):
            output = forward(model, batch)
            y = labels_of(batch, "this probe")
            check_output(output)
            counts.right += count_correct(output, y)
            counts.loss += float(F.cross_entropy(output.double(), y, reduction="sum"))
            counts.samples += len(y)
    if not counts.samples:
        raise ValueError("batches gave no sample; give a list of batches")
    return counts
