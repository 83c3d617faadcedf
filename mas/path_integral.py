"""Importance gathered while training: how much each weight's path has lowered the loss (SI, RWalk)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mas.penalty import pad_to
from mas.state import named_parameters


class PathIntegral:
    """Synaptic Intelligence: ω_i = −Σ_steps g_i Δθ_i, the part of the loss's fall that weight i earned.

    Call `before_step` after the backward pass of the task's own loss, *before* a penalty is
    added to the gradients, and `after_step` after the optimizer's step. At the end of a task
    `importance` gives max(ω, 0) / (Δ² + ξ), Δ the way a weight has gone during the task.

    Args:
        model: whose parameters to follow; the path begins where they stand. Parameters that the
            model grows later are followed from the next `start`.
        damping: ξ, above 0: bounds the importance of weights that hardly moved.

    Source: Zenke et al. 2017, eq. 3 (ω) and eq. 5 (Ω). The clamp at 0 is not in the paper: it is a
    choice made here, so that no weight is pushed away from its anchor. The authors' code clamps
    the sum over tasks instead.

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
        self.model, self.damping = model, damping
        self.start()

    def start(self) -> None:
        """Begin a path at the weights as they stand."""
        self.params = {name: p for name, p in named_parameters(self.model).items() if p.requires_grad}
        self.origin = self._values()
        self.gain = {name: torch.zeros_like(t) for name, t in self.origin.items()}
        self._step: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    @torch.no_grad()
    def before_step(self) -> None:
        """Note gradients and weights."""
        self._step = {name: p.grad.clone() for name, p in self.params.items() if p.grad is not None}, self._values()

    @torch.no_grad()
    def after_step(self) -> None:
        """Add −g Δθ of the step just done.

        Raises:
            RuntimeError: `before_step` was not called.
        """
        if self._step is None:
            raise RuntimeError("after_step without before_step; call before_step after each backward pass")
        gradients, before = self._step
        names = list(gradients)
        moves = torch._foreach_sub([before[n] for n in names], [self.params[n].detach() for n in names])
        torch._foreach_addcmul_([self.gain[n] for n in names], moves, [gradients[n] for n in names])
        self._step = None

    def importance(self) -> dict[str, Tensor]:
        """Give max(ω, 0) / (Δ² + ξ) of the path so far, by parameter name, of the parameter's shape."""
        return {
            name: self.gain[name].clamp(min=0) / ((p.detach() - self.origin[name]).square() + self.damping)
            for name, p in self.params.items()
        }

    def _values(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.params.items()}


class RiemannianWalk:
    """RWalk: Fisher information, and a path integral measured in distances of the Fisher metric.

    Training is cut into intervals of a few steps. At the end of each one `close_interval` takes
    the Fisher information F_new of the latest mini-batch:

        F ← α F_new + (1 − α) F                        score += ω / (½ F Δ² + ε)

    with ω and Δ of the interval. `importance`, at the end of a task, is F / max F + s / max s,
    maxima over all weights, s the mean of max(score, 0) and the s of the task before.

    Args:
        model: whose parameters to follow.
        alpha: α, from 0 to 1.
        damping: ε, above 0.

    Source: Chaudhry et al. 2018 (arXiv 1801.10112), eq. 6 to 8. Unlike there, F is a mean over
    samples, not the square of a mini-batch's mean gradient, and is renewed once an interval.
    """

    def __init__(self, model: nn.Module, alpha: float = 0.9, damping: float = 0.1):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; give a number from 0 to 1")
        self.alpha, self.path = alpha, PathIntegral(model, damping)
        self.fisher: dict[str, Tensor] = {}
        self.score: dict[str, Tensor] = {}  # of the current task
        self.past: dict[str, Tensor] = {}  # s, of the tasks before
        self.steps = 0  # since the last interval was closed

    def start(self, model: nn.Module | None = None) -> None:
        """Begin a task at the weights as they stand, of another model if one took the first one's place."""
        self.path.model = model or self.path.model
        self.path.start()
        self.score, self.steps = {}, 0

    def before_step(self) -> None:
        """Note gradients and weights; see `PathIntegral.before_step`."""
        self.path.before_step()

    def after_step(self) -> None:
        """Add what the step just done has earned."""
        self.path.after_step()
        self.steps += 1

    @torch.no_grad()
    def close_interval(self, fisher: Mapping[str, Tensor]) -> None:
        """End an interval of any number of steps with the Fisher information of its last mini-batch.

        Args:
            fisher: by parameter name, as `mas.fisher_importance` gives it. A tensor of zeros only,
                such as an old head that the batch does not use, leaves what is known as it is.
        """
        for name in self.path.params.keys() & fisher.keys():  # some may have been frozen since
            p, new = self.path.params[name], fisher[name]
            old = pad_to(self.fisher.get(name, new), new)
            self.fisher[name] = torch.lerp(old, new, self.alpha) if new.any() else old
            distance = 0.5 * self.fisher[name] * (p.detach() - self.path.origin[name]).square()
            earned = self.path.gain[name] / (distance + self.path.damping)
            self.score[name] = self.score.get(name, torch.zeros_like(earned)) + earned
        self.path.start()
        self.steps = 0

    def importance(self) -> dict[str, Tensor]:
        """End the task: give F / max F + s / max s by parameter name; each part is from 0 to 1.

        Zeros for a parameter that the task did not use, such as the head of another task.
        """
        for name, earned in self.score.items():
            score = earned.clamp(min=0)
            past = pad_to(self.past.get(name, score), score)
            self.past[name] = (past + score) / 2 if score.any() else past
        fisher, scores = _scaled(self.fisher), _scaled(self.past)
        return {
            name: fisher[name] + scores[name] if earned.any() else torch.zeros_like(earned)
            for name, earned in self.score.items()
        }


def _scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    largest = max((float(t.max()) for t in tensors.values() if t.numel()), default=0.0)
    return {name: t / largest if largest > 0 else t for name, t in tensors.items()}
