"""Importance and penalty as Avalanche plugins, for any strategy that trains by gradients.

`ImportancePlugin` does all the work: it measures importance after each experience, adds it to the
penalty, and adds the penalty's gradient in each training step. The plugin of a method only chooses
the measure and the penalty. SI and RWalk, which gather importance while training, also add hooks.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from mas.annotations import Count, Fraction, NonNegative, Positive
from mas.batches import Batch, Forward
from mas.gradients import Reduction
from mas.importance import (
    DRAWN,
    Labels,
    Norm,
    fisher_importance,
    last_layer,
    mas_importance,
    random_importance,
    uniform_importance,
)
from mas.local import local_mas_importance
from mas.path_integral import PathIntegral, RiemannianWalk
from mas.penalty import QuadraticPenalty
from mas.strategies.measured_data import (
    AnyDataset,
    Data,
    as_batch,
    by_strategy,
    by_task_labels,
    check_data,
    data_of,
    explained_failures,
    forward_for,
    measured_batches,
    refuse_other_classifier,
    task_of,
)

Accumulate = Literal["sum", "ema", "decay"]
Parameters = Literal["all", "backbone"]
EWCMode = Literal["separate", "online"]
RandomValues = Literal["uniform", "mas"]
Measure = Callable[..., dict[str, Tensor]]


class ImportancePlugin(SupervisedPlugin):
    """Protect what past experiences need, by an importance measure and a quadratic penalty.

    Args:
        measure: ``measure(model, batches, forward=...)`` returns importance by parameter name, as
            `mas.mas_importance` does.
        penalty: the penalty that importance is added to.
        parameters: "all" protects every parameter; "backbone" all except those of the layer that is
            called last (the classifier, or the heads).
        data: what to measure on: the "train" data of the experience, the "test" data of the same
            experience of the benchmark, or "both", one after the other; or other samples, such as
            unlabelled ones: a data set whose items are inputs, or tuples that start with the
            input, or ``data(experience)``, which returns one. An Avalanche data set has its own task
            labels; samples of another data set get the task label of the experience.
        max_samples: measure on a random draw of this many samples.

    The logged loss (``strategy.loss`` after the backward pass) includes the penalty. Importance
    is measured in eval mode, with evaluation transforms. The model is run as Avalanche's strategies
    run it, on the input and the task labels. On a minibatch that is a dict, it is run by the
    strategy's own ``forward()``, or on the dict itself if the strategy has none.
    """

    gathers = False
    """Whether importance comes from training, not from a pass over data."""

    def __init__(
        self,
        measure: Measure,
        penalty: QuadraticPenalty,
        *,
        parameters: Parameters = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ):
        super().__init__()
        if parameters not in ("all", "backbone"):
            raise ValueError(f"parameters is {parameters!r}; known are 'all', 'backbone'")
        check_data(data)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}; give a number of at least 1, or None for all")
        self.measure = measure
        self.penalty = penalty
        self.parameters = parameters
        self.data = data
        self.max_samples = max_samples
        self.generator = torch.Generator().manual_seed(0)
        """The source of every random draw of the plugin; reseed it for other draws."""

    def before_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Refuse a model that cannot be measured before time is spent on training it."""
        refuse_other_classifier(strategy.model)

    def after_backward(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Add the penalty to the gradients and to the loss."""
        strategy.loss = strategy.loss + self.penalty.add_gradient_(strategy.model)

    def after_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Measure importance for the finished experience, and anchor the penalty at the current weights."""
        experience: DatasetExperience = strategy.experience
        self._protect(strategy, data_of(self.data, experience), task_of(experience))

    def adapt(self, strategy: SupervisedTemplate, data: AnyDataset, *, task_label: int = 0) -> None:
        """Measure importance on further data, and anchor the penalty at the current weights.

        Call it between experiences: unlabelled samples met at test time show what the network will be
        used for, and so what to protect (after Aljundi et al. 2018).

        Args:
            strategy: the strategy that has this plugin.
            data: a data set, as for the plugin.
            task_label: of all samples, unless ``data`` is an Avalanche data set, which has its own.

        Raises:
            TypeError: the method gathers importance while training.
        """
        if self.gathers:
            raise TypeError(f"{type(self).__name__} gathers importance while training; it cannot measure it on data")
        self._protect(strategy, data, task_label)

    def _protect(self, strategy: SupervisedTemplate, data: AnyDataset, task: int) -> None:
        draw = partial(measured_batches, strategy, data, max_samples=self.max_samples, generator=self.generator)
        forward = forward_for(strategy, data, task)
        with explained_failures(strategy, draw, forward):
            importance = self.measure(strategy.model, draw(), forward=forward)
            if self.parameters == "backbone":
                head = last_layer(strategy.model, next(draw()), forward=forward)
                importance = {name: omega for name, omega in importance.items() if name not in head}
        self.penalty.consolidate(strategy.model, importance)


class MASPlugin(ImportancePlugin):
    """Memory Aware Synapses: penalty λ Σ Ω (θ − θ*)², Ω from the gradients of the output's norm.

    Args:
        lam: λ, at least 0.
        norm: "squared_l2" or "l2", see `mas.mas_importance`.
        accumulate: "sum" adds up importance over experiences (the authors' code), "ema" averages
            it as Avalanche does, "decay" multiplies old importance by ``factor``.
        factor: weight of the old importance in "ema" and "decay".
        reduction: "sample", or "batch" only to reproduce other libraries, see `mas.mean_moments`.
        parameters, data, max_samples: see `ImportancePlugin`.

    Source: Aljundi et al. 2018.
    """

    def __init__(
        self,
        lam: NonNegative = 1.0,
        norm: Norm = "squared_l2",
        *,
        accumulate: Accumulate = "sum",
        factor: Fraction = 0.5,
        reduction: Reduction = "sample",
        parameters: Parameters = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ):
        super().__init__(
            partial(mas_importance, norm=norm, reduction=reduction),
            QuadraticPenalty(lam, accumulate, factor=factor),
            parameters=parameters,
            data=data,
            max_samples=max_samples,
        )


class LocalMASPlugin(ImportancePlugin):
    """Local MAS: as `MASPlugin`, with Ω from each layer's own output, in forward passes only.

    Args:
        lam, accumulate, factor: as for `MASPlugin`.
        parameters, data, max_samples: see `ImportancePlugin`.

    Source: Aljundi et al. 2018, l-MAS.
    """

    def __init__(
        self,
        lam: NonNegative = 1.0,
        accumulate: Accumulate = "sum",
        *,
        factor: Fraction = 0.5,
        parameters: Parameters = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ):
        super().__init__(
            local_mas_importance,
            QuadraticPenalty(lam, accumulate, factor=factor),
            parameters=parameters,
            data=data,
            max_samples=max_samples,
        )


class EWCPlugin(ImportancePlugin):
    """Elastic Weight Consolidation: penalty λ/2 Σ_k Σ F_k (θ − θ*_k)², F the Fisher information.

    Args:
        lam: λ, at least 0.
        labels: whose log-likelihood: "exact", "hutchinson", "sampled", "empirical" or "predicted", see
            `mas.fisher_importance`.
        mode: "separate" keeps one quadratic per experience, as one exact sum of constant size;
            "online" keeps the latest anchor and multiplies old information by ``decay``.
        decay: γ of "online", from 0 to 1.
        reduction: "sample", or "batch" only to reproduce other libraries, see `mas.mean_moments`.
        parameters, data, max_samples: see `ImportancePlugin`.

    Source: Kirkpatrick et al. 2017; "online": Schwarz et al. 2018.
    """

    def __init__(
        self,
        lam: NonNegative = 100.0,
        labels: Labels = "exact",
        *,
        mode: EWCMode = "separate",
        decay: Fraction = 1.0,
        reduction: Reduction = "sample",
        parameters: Parameters = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ):
        if mode not in _ACCUMULATE_OF_EWC:
            raise ValueError(f"mode is {mode!r}; known are {', '.join(map(repr, _ACCUMULATE_OF_EWC))}")
        if labels == "empirical" and data in ("test", "both"):
            raise ValueError("labels='empirical' would look at test labels; with data='test' or 'both' take 'exact'")
        super().__init__(
            partial(fisher_importance, labels=labels, reduction=reduction),
            QuadraticPenalty(lam / 2, _ACCUMULATE_OF_EWC[mode], factor=decay),
            parameters=parameters,
            data=data,
            max_samples=max_samples,
        )
        if labels in DRAWN:
            self.measure = partial(self.measure, generator=self.generator)


_ACCUMULATE_OF_EWC: dict[EWCMode, Literal["quadratics", "decay"]] = {"separate": "quadratics", "online": "decay"}


class OnlineEWCPlugin(EWCPlugin):
    """Online EWC: penalty λ/2 Σ F (θ − θ*)², F ← γ F + F_new, θ* the latest weights.

    Args:
        lam, labels, reduction: as for `EWCPlugin`.
        decay: γ, from 0 to 1.
        parameters, data, max_samples: see `ImportancePlugin`.

    Source: Schwarz et al. 2018, Progress & Compress, sec. 4.
    """

    def __init__(
        self,
        lam: NonNegative = 100.0,
        labels: Labels = "exact",
        *,
        decay: Fraction = 0.95,
        reduction: Reduction = "sample",
        parameters: Parameters = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ):
        super().__init__(
            lam,
            labels,
            mode="online",
            decay=decay,
            reduction=reduction,
            parameters=parameters,
            data=data,
            max_samples=max_samples,
        )


class SIPlugin(ImportancePlugin):
    """Synaptic Intelligence: penalty λ Σ Ω (θ − θ*)², Ω gathered along the path of training.

    The path integral uses the strategy's gradient without the penalty of this plugin.

    Args:
        lam: λ (the paper's c), at least 0.
        damping: ξ, above 0.
        parameters: "all" or "backbone", see `ImportancePlugin`.

    Source: Zenke et al. 2017, see `mas.PathIntegral`.
    """

    gathers = True

    def __init__(self, lam: NonNegative = 1.0, damping: Positive = 0.1, *, parameters: Parameters = "all"):
        super().__init__(self._importance, QuadraticPenalty(lam, "sum"), parameters=parameters)
        self.damping = damping
        self.path: PathIntegral | None = None

    def before_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Start a path at the current weights, new heads included."""
        if self.parameters != "all":  # otherwise nothing is measured in eval mode
            super().before_training_exp(strategy, *args, **kwargs)
        self.path = PathIntegral(strategy.model, self.damping)

    def after_backward(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Record the gradient before the penalty is added to it."""
        self._started().before_step()
        super().after_backward(strategy, *args, **kwargs)

    def after_update(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Add the contribution of the step to the path integral."""
        self._started().after_step()

    def _started(self) -> PathIntegral:
        if self.path is None:
            raise RuntimeError("SI saw a step before the experience began; was the plugin added in the middle of it?")
        return self.path

    def _importance(
        self, model: nn.Module, batches: Iterable[Batch], forward: Forward | None = None
    ) -> dict[str, Tensor]:
        return self._started().importance()


class RWalkPlugin(ImportancePlugin):
    """Riemannian Walk: penalty λ Σ (F + s) (θ − θ*)², Fisher information and path integral, each scaled to 1.

    Args:
        lam: λ, at least 0.
        alpha: α, the weight of the newest mini-batch in the Fisher information.
        interval: steps between two measurements of the Fisher information; an experience may
            have any number of steps.
        damping: ε, above 0.
        parameters: "all" or "backbone", see `ImportancePlugin`.

    Source: Chaudhry et al. 2018, see `mas.RiemannianWalk`.
    """

    gathers = True

    def __init__(
        self,
        lam: NonNegative = 1.0,
        alpha: Fraction = 0.9,
        *,
        interval: Count = 10,
        damping: Positive = 0.1,
        parameters: Parameters = "all",
    ):
        if interval < 1:
            raise ValueError(f"interval is {interval}; give a number of at least 1")
        penalty = QuadraticPenalty(lam, "ema", factor=0.0)
        super().__init__(self._importance, penalty, parameters=parameters)
        self.alpha = alpha
        self.interval = interval
        self.damping = damping
        self.walk: RiemannianWalk | None = None
        self.latest_batch: Batch = []  # kept here: an evaluation in between replaces the strategy's

    def before_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Start a task at the current weights, new heads included."""
        super().before_training_exp(strategy, *args, **kwargs)
        if self.walk is None:
            self.walk = RiemannianWalk(strategy.model, self.alpha, damping=self.damping)
        self.walk.start(strategy.model)

    def after_backward(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Record the gradient before the penalty is added to it."""
        self._started().before_step()
        super().after_backward(strategy, *args, **kwargs)

    def after_update(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Add the contribution of the step; measure the Fisher information at the end of an interval."""
        walk = self._started()
        walk.after_step()
        self.latest_batch = as_batch(strategy, strategy.mbatch)
        if walk.steps == self.interval:
            self._close_interval(strategy)

    def after_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Close the last interval, however short, and anchor the penalty at the current weights."""
        if self._started().steps:
            self._close_interval(strategy)
        super().after_training_exp(strategy, *args, **kwargs)

    def _close_interval(self, strategy: SupervisedTemplate) -> None:
        batches = [self.latest_batch]
        forward = by_strategy(strategy, by_task_labels)
        with explained_failures(strategy, lambda: iter(batches), forward):
            fisher = fisher_importance(strategy.model, batches, labels="empirical", forward=forward)
        self._started().close_interval(fisher)

    def _started(self) -> RiemannianWalk:
        if self.walk is None:
            raise RuntimeError(
                "RWalk saw a step before the experience began; was the plugin added in the middle of it?"
            )
        return self.walk

    def _importance(
        self, model: nn.Module, batches: Iterable[Batch], forward: Forward | None = None
    ) -> dict[str, Tensor]:
        return self._started().importance()


class L2Plugin(ImportancePlugin):
    """L2 to the last anchor: penalty λ Σ (θ − θ*)², the control that protects all weights equally.

    Args:
        lam: λ, at least 0.
        parameters: "all" or "backbone", see `ImportancePlugin`.
    """

    def __init__(self, lam: NonNegative = 1.0, parameters: Parameters = "all"):
        penalty = QuadraticPenalty(lam, "ema", factor=0.0)
        super().__init__(uniform_importance, penalty, parameters=parameters)


class RandomPlugin(ImportancePlugin):
    """Random importance: penalty λ Σ Ω (θ − θ*)², the control that protects weights at random.

    Args:
        lam: λ, at least 0.
        values: "uniform" from 0 to 1, or "mas": the MAS importance, permuted within each parameter,
            see `mas.random_importance`.
        accumulate, factor: as for `MASPlugin`.
        parameters, data, max_samples: see `ImportancePlugin`.
    """

    def __init__(
        self,
        lam: NonNegative = 1.0,
        values: RandomValues = "uniform",
        *,
        accumulate: Accumulate = "sum",
        factor: Fraction = 0.5,
        parameters: Parameters = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ):
        super().__init__(
            random_importance,
            QuadraticPenalty(lam, accumulate, factor=factor),
            parameters=parameters,
            data=data,
            max_samples=max_samples,
        )
        self.measure = partial(random_importance, values=values, generator=self.generator)
