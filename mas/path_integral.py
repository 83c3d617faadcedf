"""Importance accumulated during training: how much each weight's path has reduced the loss (SI, RWalk)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mas.penalty import pad_to
from mas.state import named_parameters


class PathIntegral:
    """Synaptic Intelligence: ω_i = −Σ_steps g_i Δθ_i, the part of the loss reduction due to weight i.

    Call `before_step` after the backward pass of the task's own loss, *before* a penalty is
    added to the gradients, and `after_step` after the optimizer's step. At the end of a task
    `importance` returns max(ω, 0) / (Δ² + ξ), where Δ is the change of a weight during the task.

    Args:
        model: the model whose parameters are followed; the path begins at their current values.
            Parameters added to the model later are followed from the next `start`.
        damping: ξ, above 0: bounds the importance of weights that hardly moved.

    Raises:
        ValueError: ``damping`` is not above 0.

    Source: Zenke et al. 2017, eq. 3 (ω) and eq. 5 (Ω). The clamp at 0 is not in the paper: it
    ensures here that no weight is pushed away from its anchor. The authors' code clamps the sum
    over tasks instead.

    One step of gradient descent, g = 4, Δθ = −1, from θ = 3:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 3.0)
    >>> path = PathIntegral(model, damping=1.0)
    >>> model.weight.grad = torch.tensor([[4.0]])
    >>> path.before_step()
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> path.after_step()
    >>> path.importance()  # 4 / (1 + 1)
    {'weight': tensor([[2.]])}
    """

    def __init__(self, model: nn.Module, damping: float = 0.1):
        if not damping > 0:
            raise ValueError(f"damping is {damping}; give a number above 0")
        self.model = model
        self.damping = damping
        self.start()

    def start(self) -> None:
        """Begin a path at the current weights."""
        self.params = {name: p for name, p in named_parameters(self.model).items() if p.requires_grad}
        self.origin = self._copy_weights()
        self.gain = {name: torch.zeros_like(weight) for name, weight in self.origin.items()}  # ω
        self._step: _Step | None = None

    @torch.no_grad()
    def before_step(self) -> None:
        """Record gradients and weights."""
        gradients = {name: p.grad.clone() for name, p in self.params.items() if p.grad is not None}
        self._step = _Step(gradients, self._copy_weights())

    @torch.no_grad()
    def after_step(self) -> None:
        """Add −g Δθ of the last step.

        Raises:
            RuntimeError: `before_step` was not called.
        """
        if self._step is None:
            raise RuntimeError("after_step without before_step; call before_step after each backward pass")
        names = list(self._step.gradients)
        before = [self._step.weights[name] for name in names]
        after = [self.params[name].detach() for name in names]
        gains = [self.gain[name] for name in names]
        gradients = [self._step.gradients[name] for name in names]
        negative_changes = torch._foreach_sub(before, after)
        torch._foreach_addcmul_(gains, negative_changes, gradients)
        self._step = None

    def importance(self) -> dict[str, Tensor]:
        """Return max(ω, 0) / (Δ² + ξ) of the path so far, by parameter name, of the parameter's shape."""
        found = {}
        for name, parameter in self.params.items():
            squared_change = (parameter.detach() - self.origin[name]).square()
            found[name] = self.gain[name].clamp(min=0) / (squared_change + self.damping)
        return found

    def _copy_weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.params.items()}


class _Step(NamedTuple):
    """Gradients and weights before a step, by parameter name."""

    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


class RiemannianWalk:
    """Riemannian Walk: Fisher information, plus a path integral relative to distances in the Fisher metric.

    Training is split into intervals of a few steps. At the end of each, `close_interval` takes the
    Fisher information F_new of the latest mini-batch:

        F ← α F_new + (1 − α) F                        score += ω / (½ F Δ² + ε)

    with ω and Δ of the interval. At the end of a task, `importance` returns F / max F + s / max s,
    with maxima over all weights, and s the mean of max(score, 0) and the s of the task before.

    Args:
        model: the model whose parameters are followed.
        alpha: α, from 0 to 1.
        damping: ε, above 0.

    Raises:
        ValueError: ``alpha`` or ``damping`` is out of range.

    Source: Chaudhry et al. 2018 (arXiv 1801.10112), eq. 6 to 8. Unlike there, F is a mean over
    samples, not the square of a mini-batch's mean gradient, and is updated once per interval.
    """

    def __init__(self, model: nn.Module, alpha: float = 0.9, damping: float = 0.1):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; give a number from 0 to 1")
        self.alpha = alpha
        self.path = PathIntegral(model, damping)
        self.fisher: dict[str, Tensor] = {}
        self.score: dict[str, Tensor] = {}  # of the current task
        self.past: dict[str, Tensor] = {}  # s, of the tasks before
        self.steps = 0  # since the last interval was closed

    def start(self, model: nn.Module | None = None) -> None:
        """Begin a task at the current weights, of another model if one is given."""
        self.path.model = model or self.path.model
        self.path.start()
        self.score = {}
        self.steps = 0

    def before_step(self) -> None:
        """Record gradients and weights, see `PathIntegral.before_step`."""
        self.path.before_step()

    def after_step(self) -> None:
        """Add −g Δθ of the last step, see `PathIntegral.after_step`."""
        self.path.after_step()
        self.steps += 1

    @torch.no_grad()
    def close_interval(self, fisher: Mapping[str, Tensor]) -> None:
        """End an interval of any number of steps with the Fisher information of its last mini-batch.

        Args:
            fisher: by parameter name, as `mas.fisher_importance` returns it. A tensor of zeros only,
                as for an old head that the batch does not use, leaves F as it is.
        """
        for name in self.path.params.keys() & fisher.keys():  # some parameters may be frozen by now
            new = fisher[name]
            old = pad_to(self.fisher.get(name, new), new)
            self.fisher[name] = torch.lerp(old, new, self.alpha) if new.any() else old
            change = self.path.params[name].detach() - self.path.origin[name]
            distance = 0.5 * self.fisher[name] * change.square()
            score = self.path.gain[name] / (distance + self.path.damping)
            self.score[name] = self.score.get(name, torch.zeros_like(score)) + score
        self.path.start()
        self.steps = 0

    def importance(self) -> dict[str, Tensor]:
        """End the task and return F / max F + s / max s by parameter name; each part is from 0 to 1.

        Zeros for a parameter that the task did not use, such as the head of another task.
        """
        for name, score in self.score.items():
            positive = score.clamp(min=0)
            past = pad_to(self.past.get(name, positive), positive)
            self.past[name] = (past + positive) / 2 if positive.any() else past
        fisher = _scaled(self.fisher)
        scores = _scaled(self.past)
        found = {}
        for name, score in self.score.items():
            is_used = bool(score.any())
            found[name] = fisher[name] + scores[name] if is_used else torch.zeros_like(score)
        return found


def _scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors divided by their largest value, or as they are if it is 0."""
    largest = max((float(t.max()) for t in tensors.values() if t.numel()), default=0.0)
    if not largest > 0:
        return dict(tensors)
    return {name: tensor / largest for name, tensor in tensors.items()}
