"""Importance and penalty as Avalanche plugins, for any strategy that trains by gradients.

`ImportancePlugin` is the whole mechanism: measure importance after each experience, join it to
the penalty, add the penalty's gradient in each step. A method only says which measure and which
penalty it is made of.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from avalanche.models.utils import avalanche_forward
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mas.importance import Labels, Norm, fisher_importance, mas_importance
from mas.penalty import QuadraticPenalty

NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Gt(0)]
Measure = Callable[..., dict[str, Tensor]]


class ImportancePlugin(SupervisedPlugin[Any]):
    """Protect what past experiences need: an importance measure and a quadratic penalty.

    Args:
        measure: ``measure(model, batches, forward=...)`` gives importance by parameter name, as
            `mas.mas_importance` does.
        penalty: what importance is joined to, and what pulls weights back.
        max_samples: measure on a random draw of that many samples of the experience.

    The logged loss (``strategy.loss`` after the backward pass) includes the penalty. Importance
    is measured on the experience's own data, in evaluation transforms and eval mode.
    """

    def __init__(self, measure: Measure, penalty: QuadraticPenalty, max_samples: int | None = None):
        super().__init__()
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}; give a number of at least 1, or None for all")
        self.measure, self.penalty, self.max_samples = measure, penalty, max_samples
        self.generator = torch.Generator().manual_seed(0)
        """Every draw the plugin makes: reseed it for another one; no global stream is touched."""

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty to the gradients and to the loss."""
        strategy.loss = strategy.loss + self.penalty.add_gradient_(strategy.model)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure importance on the experience that ends, and protect the weights as they stand."""
        importance = self.measure(strategy.model, self._batches(strategy), forward=_forward)
        self.penalty.consolidate(strategy.model, importance)

    def _batches(self, strategy: Any) -> Iterator[list[Tensor]]:
        dataset = strategy.experience.dataset.eval()
        drawn = None
        if self.max_samples is not None:
            drawn = torch.randperm(len(dataset), generator=self.generator)[: self.max_samples].tolist()
        loader = DataLoader(
            dataset, strategy.train_mb_size, sampler=drawn, collate_fn=getattr(dataset, "collate_fn", None)
        )
        for batch in loader:
            yield [tensor.to(strategy.device) for tensor in batch]


class MASPlugin(ImportancePlugin):
    """Memory Aware Synapses: penalty λ Σ Ω (θ − θ*)², Ω from the gradients of the output's norm.

    Args:
        lam: λ, at least 0.
        norm: "squared_l2" or "l2", see `mas.mas_importance`.
        accumulate: "sum" adds up importance over experiences (the authors' code), "ema" averages
            it as Avalanche does, "decay" forgets old importance by ``factor``.
        factor: weight of the old importance in "ema" and "decay".
        max_samples: measure on that many samples of each experience.

    Source: Aljundi et al. 2018.
    """

    def __init__(
        self,
        lam: NonNegative = 1.0,
        norm: Norm = "squared_l2",
        accumulate: Literal["sum", "ema", "decay"] = "sum",
        factor: Fraction = 0.5,
        max_samples: Count | None = None,
    ):
        super().__init__(partial(mas_importance, norm=norm), QuadraticPenalty(lam, accumulate, factor), max_samples)


class EWCPlugin(ImportancePlugin):
    """Elastic Weight Consolidation: penalty λ/2 Σ_k Σ F_k (θ − θ*_k)², F the Fisher information.

    Args:
        lam: λ, at least 0.
        labels: whose log-likelihood: "exact", "sampled", "empirical" or "predicted", see
            `mas.fisher_importance`.
        mode: "separate" keeps one quadratic per experience, as one exact sum of constant size;
            "online" keeps the latest anchor and decays old information by ``decay``.
        decay: γ of "online", from 0 to 1.
        max_samples: measure on that many samples of each experience.

    Source: Kirkpatrick et al. 2017; "online": Schwarz et al. 2018.
    """

    def __init__(
        self,
        lam: NonNegative = 100.0,
        labels: Labels = "exact",
        mode: Literal["separate", "online"] = "separate",
        decay: Fraction = 1.0,
        max_samples: Count | None = None,
    ):
        if mode not in _EWC_MODES:
            raise ValueError(f"mode is {mode!r}; known are {', '.join(map(repr, _EWC_MODES))}")
        penalty = QuadraticPenalty(lam / 2, _EWC_MODES[mode], decay)
        super().__init__(partial(fisher_importance, labels=labels), penalty, max_samples)
        if labels == "sampled":
            self.measure = partial(self.measure, generator=self.generator)


_EWC_MODES: dict[str, Literal["quadratics", "decay"]] = {"separate": "quadratics", "online": "decay"}


def _forward(model: nn.Module, batch: list[Tensor]) -> Any:
    """Run the model as Avalanche's strategies do: task labels, the batch's last item, go along."""
    return avalanche_forward(model, batch[0], batch[-1])
