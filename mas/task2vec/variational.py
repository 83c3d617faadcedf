"""The variational estimator: how much noise each filter's weights can bear.

Source: Achille et al. 2019, Task2Vec (ICCV), the robust Fisher computation.
"""

import math
from collections.abc import Sequence
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mas.batches import Batch, Forward
from mas.finite import check_finite
from mas.state import preserving_state
from mas.task2vec.filters import Filters

STEPS = 1000
"""Default number of steps of Adam.

On a small CNN trained on scikit-learn's digits, with batches of 64, the precisions of 80 filters then have the rank
correlation 0.92 with those of the exact Fisher information for the ten digits, 0.93 for 3 and 8 (their logarithms
correlate with 0.99). Twice as many steps bring the rank correlation to 0.94 and 0.97. With BatchNorm and 17 filters, on
a network of 78 % accuracy, it was 0.60 only.
"""

_RATE = 0.2  # of Adam at first; it falls to 0 by the last step
_BETAS = (0.9, 0.95)  # of Adam: the second forgets the first gradients, which are much larger than later ones
_LEVELS = range(-12, 0)  # σ² starts at λ² times the best power of ten
_AVERAGED = 0.5  # the share of the steps, the last ones, over which log σ² is averaged


def fit_noise(
    model: nn.Module,
    batches: Sequence[Batch],
    filters: Filters,
    *,
    beta: float,
    steps: int,
    run: Forward,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return F = β/σ² − β/λ², not below 0, and β/λ², both of shape (filters,), float64, on the CPU.

    σ minimises E[mean NLL at w + σε] + β KL(N(w, σ²) ‖ N(0, λ²)), ε standard normal, by Adam on one log σ²
    for each filter; λ² = mean of w² + σ² over a layer is the best prior of that layer, in closed
    form. Each step takes one batch, in turn, at w + σε and at w − σε, which takes out the
    gradient's part that is odd in ε.

    Args:
        model: in eval mode; its weights stay as they are.
        batches: of ``(x, y, ...)``, y from 0.
        filters: of ``model``.
        beta: above 0.
        steps: of Adam, above 0.
        run: the forward pass, returns logits.
        generator: of ε, on the CPU; by default a new one, seeded 0.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give a number above 0")
    generator = generator or torch.Generator().manual_seed(0)
    weights = {name: model.get_parameter(name).detach() for name in filters.axes}
    caller = _Caller(model, run)
    log_variances = _start(caller, weights, filters, batches[0], beta)
    optimizer = torch.optim.Adam(log_variances.values(), lr=_RATE, betas=_BETAS)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    first_averaged = int(steps * (1 - _AVERAGED))
    totals = {name: torch.zeros_like(value) for name, value in log_variances.items()}
    with preserving_state(model), torch.enable_grad():
        for step, batch in enumerate(islice(cycle(batches), steps)):
            noise = _draw(weights, log_variances, filters, generator)
            loss = _mean_nll(caller, weights, noise, batch)
            check_finite(loss, f"the loss with noise on the weights, step {step},")
            optimizer.zero_grad()
            (loss + beta * _divergence(weights, log_variances)).backward()
            optimizer.step()
            schedule.step()
            if step >= first_averaged:
                for name, total in totals.items():
                    total.add_(log_variances[name].detach())
    averaged = {name: total / (steps - first_averaged) for name, total in totals.items()}
    return _precisions(weights, averaged, beta)


class _Caller(nn.Module):
    """A model and the function that runs it, as one module that `functional_call` can call."""

    def __init__(self, model: nn.Module, run: Forward):
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, batch: Batch) -> Tensor:
        return self.run(self.model, batch)


def _start(
    caller: _Caller, weights: dict[str, Tensor], filters: Filters, batch: Batch, beta: float
) -> dict[str, Tensor]:
    """Return the first log σ² of each weight's filters: log λ² plus the level, one for all, with the least loss."""
    best, least = _at_level(_LEVELS[0], weights, filters), math.inf
    for level in _LEVELS:
        proposed = _at_level(level, weights, filters)
        noise = _draw(weights, proposed, filters, torch.Generator().manual_seed(0))
        with torch.no_grad():
            nll = _mean_nll(caller, weights, noise, batch)
            loss = float(nll + beta * _divergence(weights, proposed))
        if loss < least:
            best, least = proposed, loss
    return {name: log_variance.requires_grad_() for name, log_variance in best.items()}


def _at_level(level: int, weights: dict[str, Tensor], filters: Filters) -> dict[str, Tensor]:
    """Return log σ² of each weight's filters for σ² = 10^level times the layer's mean squared weight."""
    log_variances = {}
    for name, weight in weights.items():
        mean_square = weight.square().mean().clamp_min(torch.finfo(weight.dtype).tiny)
        log_variance = mean_square.log() + level * math.log(10)
        log_variances[name] = log_variance.expand(weight.shape[filters.axes[name]]).clone()
    return log_variances


def _draw(
    weights: dict[str, Tensor], log_variances: dict[str, Tensor], filters: Filters, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return σε of each weight's shape."""
    noise = {}
    for name, weight in weights.items():
        deviation = (log_variances[name] / 2).exp()
        normal = torch.randn(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)
        noise[name] = filters.shaped(name, deviation, weight) * normal
    return noise


def _mean_nll(caller: _Caller, weights: dict[str, Tensor], noise: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return the mean of the cross-entropies at w + noise and w − noise, in nats."""
    losses = []
    for sign in (1, -1):
        noisy = {f"model.{name}": weight + sign * noise[name] for name, weight in weights.items()}
        logits = torch.func.functional_call(caller, noisy, (batch,))
        losses.append(F.cross_entropy(logits, batch[1].to(logits.device)))
    return torch.stack(losses).mean()


def _divergence(weights: dict[str, Tensor], log_variances: dict[str, Tensor]) -> Tensor:
    """Return KL(N(w, σ²) ‖ N(0, λ²)) in nats, summed over the weights, for the best λ² of each layer."""
    parts = []
    for name, weight in weights.items():
        log_variance = log_variances[name]
        log_prior = _prior(weight, log_variance).log()
        parts.append(weight.numel() / 2 * (log_prior - log_variance.mean()))
    return torch.stack(parts).sum()


def _prior(weight: Tensor, log_variance: Tensor) -> Tensor:
    """Return λ², the mean of w² + σ² over a layer; its filters have equally many weights."""
    return weight.square().mean() + log_variance.exp().mean()


def _precisions(weights: dict[str, Tensor], log_variances: dict[str, Tensor], beta: float) -> tuple[Tensor, Tensor]:
    vectors, scales = [], []
    for name, weight in weights.items():
        log_variance = log_variances[name].double()
        scale = beta / _prior(weight.double(), log_variance)
        vectors.append((beta / log_variance.exp() - scale).clamp_min(0).cpu())
        scales.append(scale.expand(len(log_variance)).cpu())
    return torch.cat(vectors), torch.cat(scales)
