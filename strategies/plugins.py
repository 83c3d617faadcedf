"""Importance and penalty as Avalanche plugins, for any strategy that trains by gradients.

`ImportancePlugin` is the whole mechanism: measure importance after each experience, join it to
the penalty, add the penalty's gradient in each step. A method only says which measure and which
penalty it is made of; those that gather importance while training (SI, RWalk) also say when.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import Dataset

from mas.annotations import Count, Fraction, NonNegative, Positive
from mas.gradients import Reduction
from mas.importance import (
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
from mas.strategies.samples import (
    Batch,
    Data,
    as_batch,
    batches,
    by_strategy,
    by_task_labels,
    check_data,
    data_of,
    explaining,
    forward_for,
    refuse_other_classifier,
    task_of,
)

Accumulate = Literal["sum", "ema", "decay"]
Parameters = Literal["all", "backbone"]
Measure = Callable[..., dict[str, Tensor]]


class ImportancePlugin(SupervisedPlugin[Any]):
    """Protect what past experiences need: an importance measure and a quadratic penalty.

    Args:
        measure: ``measure(model, batches, forward=...)`` gives importance by parameter name, as
            `mas.mas_importance` does.
        penalty: what importance is joined to, and what pulls weights back.
        parameters: "all" protects every parameter, "backbone" all but those of the layer that is
            called last (the classifier, or the heads).
        data: what to measure on: the experience's own "train" data, the "test" data of the same
            experience of the benchmark, or "both", one after the other; or other samples, such as
            unlabelled ones: a data set whose items are inputs, or tuples that start with the
            input, or ``data(experience)``, which gives one. An Avalanche data set brings task
            labels; samples of another get the experience's.
        max_samples: measure on a random draw of that many samples.

    The logged loss (``strategy.loss`` after the backward pass) includes the penalty. Importance
    is measured in evaluation transforms and eval mode. The model is run as Avalanche's strategies
    run it, on the input and the task labels; on a minibatch that is a dict it is run by the
    strategy's own ``forward()``, or on the dict itself if the strategy has none.
    """

    __signature__: inspect.Signature
    gathers = False  # whether importance comes from training, not from a pass over data

    def __init__(
        self,
        measure: Measure,
        penalty: QuadraticPenalty,
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
        self.measure, self.penalty, self.parameters = measure, penalty, parameters
        self.data, self.max_samples = data, max_samples
        self.generator = torch.Generator().manual_seed(0)
        """Every draw the plugin makes: reseed it for another one; no global stream is touched."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the options of this class where a method's ``__init__`` says ``**common``."""
        super().__init_subclass__(**kwargs)
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]
        if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD:
            rest = list(inspect.signature(ImportancePlugin.__init__).parameters.values())[3:]
            keyword = inspect.Parameter.KEYWORD_ONLY
            cls.__signature__ = inspect.Signature([*own[:-1], *(p.replace(kind=keyword) for p in rest)])

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse a model that cannot be measured, before it is trained in vain."""
        refuse_other_classifier(strategy.model)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty to the gradients and to the loss."""
        strategy.loss = strategy.loss + self.penalty.add_gradient_(strategy.model)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure importance for the experience that ends, and protect the weights as they stand."""
        self._protect(strategy, data_of(self.data, strategy.experience), task_of(strategy.experience))

    def adapt(self, strategy: Any, data: Dataset[Any], task_label: int = 0) -> None:
        """Measure importance on ``data`` too, and join it to the penalty; the weights are its anchor.

        To be called between experiences: unlabelled samples met at test time tell what the
        network is used for from now on, and so what to protect (after Aljundi et al. 2018).

        Args:
            strategy: that the plugin is part of.
            data: a data set, as for the plugin.
            task_label: of all samples, unless an Avalanche data set brings its own.

        Raises:
            TypeError: the method gathers importance while training.
        """
        if self.gathers:
            raise TypeError(f"{type(self).__name__} gathers importance while training; it cannot measure it on data")
        self._protect(strategy, data, task_label)

    def _protect(self, strategy: Any, data: Any, task: int) -> None:
        drawn = partial(batches, strategy, data, self.max_samples, self.generator)
        forward = forward_for(strategy, data, task)
        with explaining(strategy, drawn, forward):
            importance = self.measure(strategy.model, drawn(), forward=forward)
            if self.parameters == "backbone":
                head = last_layer(strategy.model, next(drawn()), forward=forward)
                importance = {name: omega for name, omega in importance.items() if name not in head}
        self.penalty.consolidate(strategy.model, importance)


class MASPlugin(ImportancePlugin):
    """Memory Aware Synapses: penalty λ Σ Ω (θ − θ*)², Ω from the gradients of the output's norm.

    Args:
        lam: λ, at least 0.
        norm: "squared_l2" or "l2", see `mas.mas_importance`.
        accumulate: "sum" adds up importance over experiences (the authors' code), "ema" averages
            it as Avalanche does, "decay" forgets old importance by ``factor``.
        factor: weight of the old importance in "ema" and "decay".
        reduction: "sample", or "batch" only to reproduce other libraries, see `mas.mean_moments`.
        common: ``parameters``, ``data``, ``max_samples``, see `ImportancePlugin`.

    Source: Aljundi et al. 2018.
    """

    def __init__(
        self,
        lam: NonNegative = 1.0,
        norm: Norm = "squared_l2",
        accumulate: Accumulate = "sum",
        factor: Fraction = 0.5,
        reduction: Reduction = "sample",
        **common: Any,
    ):
        measure = partial(mas_importance, norm=norm, reduction=reduction)
        super().__init__(measure, QuadraticPenalty(lam, accumulate, factor), **common)


class LocalMASPlugin(ImportancePlugin):
    """Local MAS: as `MASPlugin`, Ω from each layer's own output, in forward passes only.

    Args:
        lam, accumulate, factor: as for `MASPlugin`.
        common: ``parameters``, ``data``, ``max_samples``, see `ImportancePlugin`.

    Source: Aljundi et al. 2018, l-MAS.
    """

    def __init__(self, lam: NonNegative = 1.0, accumulate: Accumulate = "sum", factor: Fraction = 0.5, **common: Any):
        super().__init__(local_mas_importance, QuadraticPenalty(lam, accumulate, factor), **common)


class EWCPlugin(ImportancePlugin):
    """Elastic Weight Consolidation: penalty λ/2 Σ_k Σ F_k (θ − θ*_k)², F the Fisher information.

    Args:
        lam: λ, at least 0.
        labels: whose log-likelihood: "exact", "sampled", "empirical" or "predicted", see
            `mas.fisher_importance`.
        mode: "separate" keeps one quadratic per experience, as one exact sum of constant size;
            "online" keeps the latest anchor and decays old information by ``decay``.
        decay: γ of "online", from 0 to 1.
        reduction: "sample", or "batch" only to reproduce other libraries, see `mas.mean_moments`.
        common: ``parameters``, ``data``, ``max_samples``, see `ImportancePlugin`.

    Source: Kirkpatrick et al. 2017; "online": Schwarz et al. 2018.
    """

    def __init__(
        self,
        lam: NonNegative = 100.0,
        labels: Labels = "exact",
        mode: Literal["separate", "online"] = "separate",
        decay: Fraction = 1.0,
        reduction: Reduction = "sample",
        **common: Any,
    ):
        if mode not in _EWC_MODES:
            raise ValueError(f"mode is {mode!r}; known are {', '.join(map(repr, _EWC_MODES))}")
        if labels == "empirical" and common.get("data") in ("test", "both"):
            raise ValueError("labels='empirical' would look at test labels; with data='test' or 'both' take 'exact'")
        measure = partial(fisher_importance, labels=labels, reduction=reduction)
        super().__init__(measure, QuadraticPenalty(lam / 2, _EWC_MODES[mode], decay), **common)
        if labels == "sampled":
            self.measure = partial(measure, generator=self.generator)


class OnlineEWCPlugin(EWCPlugin):
    """Online EWC: penalty λ/2 Σ F (θ − θ*)², F ← γ F + F_new, θ* the latest weights.

    Args:
        lam, labels, reduction: as for `EWCPlugin`.
        decay: γ, from 0 to 1.
        common: ``parameters``, ``data``, ``max_samples``, see `ImportancePlugin`.

    Source: Schwarz et al. 2018, Progress & Compress, sec. 4.
    """

    def __init__(
        self,
        lam: NonNegative = 100.0,
        labels: Labels = "exact",
        decay: Fraction = 0.95,
        reduction: Reduction = "sample",
        **common: Any,
    ):
        super().__init__(lam, labels, "online", decay, reduction, **common)


class SIPlugin(ImportancePlugin):
    """Synaptic Intelligence: penalty λ Σ Ω (θ − θ*)², Ω gathered along the path of training.

    The gradient that counts is the strategy's without this plugin's penalty.

    Args:
        lam: λ (the paper's c), at least 0.
        damping: ξ, above 0.
        parameters: "all" or "backbone", see `ImportancePlugin`.

    Source: Zenke et al. 2017, see `mas.PathIntegral`.
    """

    gathers = True

    def __init__(self, lam: NonNegative = 1.0, damping: Positive = 0.1, parameters: Parameters = "all"):
        super().__init__(self._gathered, QuadraticPenalty(lam, "sum"), parameters)
        self.damping = damping
        self.path: PathIntegral | None = None

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin a path at the weights as they stand, new heads included."""
        if self.parameters != "all":  # else nothing is measured in eval mode
            super().before_training_exp(strategy, *args, **kwargs)
        self.path = PathIntegral(strategy.model, self.damping)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note the gradient before the penalty is added to it."""
        self._path().before_step()
        super().after_backward(strategy, *args, **kwargs)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add what the step has earned."""
        self._path().after_step()

    def _path(self) -> PathIntegral:
        if self.path is None:
            raise RuntimeError("SI saw a step before the experience began; was the plugin added in the middle of it?")
        return self.path

    def _gathered(self, model: nn.Module, batches: Iterable[Any], forward: Any = None) -> dict[str, Tensor]:
        return self._path().importance()


class RWalkPlugin(ImportancePlugin):
    """Riemannian Walk: penalty λ Σ (F + s) (θ − θ*)², Fisher information and path integral, each scaled to 1.

    Args:
        lam: λ, at least 0.
        alpha: α, the weight of the newest mini-batch in the Fisher information.
        interval: steps from one look at the Fisher information to the next; an experience may
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
        interval: Count = 10,
        damping: Positive = 0.1,
        parameters: Parameters = "all",
    ):
        if interval < 1:
            raise ValueError(f"interval is {interval}; give a number of at least 1")
        super().__init__(self._gathered, QuadraticPenalty(lam, "ema", 0.0), parameters)
        self.alpha, self.interval, self.damping = alpha, interval, damping
        self.walk: RiemannianWalk | None = None
        self.batch: Batch = []  # the latest; an evaluation in between takes the strategy's away

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin a task at the weights as they stand, new heads included."""
        super().before_training_exp(strategy, *args, **kwargs)
        self.walk = self.walk or RiemannianWalk(strategy.model, self.alpha, self.damping)
        self.walk.start(strategy.model)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note the gradient before the penalty is added to it."""
        self._walk().before_step()
        super().after_backward(strategy, *args, **kwargs)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add what the step has earned; now and then look at the Fisher information."""
        self._walk().after_step()
        self.batch = as_batch(strategy, strategy.mbatch)
        if self._walk().steps == self.interval:
            self._close_interval(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Close the last interval, however short, and protect the weights as they stand."""
        if self._walk().steps:
            self._close_interval(strategy)
        super().after_training_exp(strategy, *args, **kwargs)

    def _close_interval(self, strategy: Any) -> None:
        forward = by_strategy(strategy, by_task_labels)
        with explaining(strategy, lambda: iter([self.batch]), forward):
            fisher = fisher_importance(strategy.model, [self.batch], labels="empirical", forward=forward)
        self._walk().close_interval(fisher)

    def _walk(self) -> RiemannianWalk:
        if self.walk is None:
            raise RuntimeError(
                "RWalk saw a step before the experience began; was the plugin added in the middle of it?"
            )
        return self.walk

    def _gathered(self, model: nn.Module, batches: Iterable[Any], forward: Any = None) -> dict[str, Tensor]:
        return self._walk().importance()


class L2Plugin(ImportancePlugin):
    """L2 to the last anchor: penalty λ Σ (θ − θ*)², the control that protects all weights alike.

    Args:
        lam: λ, at least 0.
        parameters: "all" or "backbone", see `ImportancePlugin`.
    """

    def __init__(self, lam: NonNegative = 1.0, parameters: Parameters = "all"):
        super().__init__(uniform_importance, QuadraticPenalty(lam, "ema", 0.0), parameters)


class RandomPlugin(ImportancePlugin):
    """Random importance: penalty λ Σ Ω (θ − θ*)², the control that protects weights by lot.

    Args:
        lam: λ, at least 0.
        values: "uniform" from 0 to 1, or "mas": the MAS importance, permuted within each parameter,
            see `mas.random_importance`.
        accumulate, factor: as for `MASPlugin`.
        common: ``parameters``, ``data``, ``max_samples``, see `ImportancePlugin`.
    """

    def __init__(
        self,
        lam: NonNegative = 1.0,
        values: Literal["uniform", "mas"] = "uniform",
        accumulate: Accumulate = "sum",
        factor: Fraction = 0.5,
        **common: Any,
    ):
        super().__init__(random_importance, QuadraticPenalty(lam, accumulate, factor), **common)
        self.measure = partial(random_importance, values=values, generator=self.generator)


_EWC_MODES: dict[str, Literal["quadratics", "decay"]] = {"separate": "quadratics", "online": "decay"}
