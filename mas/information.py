"""How much the weights know: the Fisher trace by layer, information in the weights, accuracy under noise.

A weight that could be anything without harm holds no information. `information_in_weights` counts
the nats that it takes to tell the weights as exactly as the task needs them; the Fisher information
(`mas.fisher_importance`) says how exactly that is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mas.batches import Batch, Forward, run_forward
from mas.importance import Labels, fisher_importance
from mas.measuring import bare, measuring, named_parameters


def fisher_trace(
    model: nn.Module,
    batches: Iterable[Batch],
    labels: Labels = "exact",
    forward: Forward | None = None,
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
    max_bytes: int | None = None,
) -> dict[str, float]:
    """Trace of the Fisher information of each layer: tr F_l = 1/N Σ_n E_c ‖∂ log p(c|x_n) / ∂θ_l‖².

    Args:
        model, batches, labels, forward, max_samples, generator, max_bytes: as for
            `mas.fisher_importance`.

    Returns:
        A number by layer, in the model's order: in nats per squared unit of weight, summed over the
        layer's weights. A layer is the module that holds the parameters, see `by_layer`.

    Raises:
        As `mas.fisher_importance`.

    Source: Achille, Rovere and Soatto 2019, Critical Learning Periods in Deep Networks.

    With a single class p(c|x) is 1, whatever the weights:

    >>> fisher_trace(nn.Linear(2, 1), [torch.ones(3, 2)])
    {'model': 0.0}
    """
    return by_layer(fisher_importance(model, batches, labels, forward, max_samples, generator, max_bytes))


def by_layer(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Sum what belongs to parameters over each layer, in double precision.

    The layer of ``body.0.weight`` is ``body.0``; parameters of the model itself belong to ``model``;
    those of a re-parametrised weight to the module whose weight it is.

    >>> by_layer({"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "scale": torch.ones(1)})
    {'0': 8.0, 'model': 1.0}
    """
    sums: dict[str, float] = {}
    for name, value in values.items():
        layer = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
        sums[layer or "model"] = sums.get(layer or "model", 0.0) + float(value.sum(dtype=torch.float64))
    return sums


def layer_shares(trace: Mapping[str, float]) -> dict[str, float]:
    """Give each layer's share of a trace; the shares add up to 1.

    Raises:
        ValueError: nothing to share: the trace is 0, or not finite.

    >>> layer_shares({"0": 3.0, "2": 1.0})
    {'0': 0.75, '2': 0.25}
    """
    total = sum(trace.values())
    if not 0 < total < float("inf"):
        raise ValueError(f"the trace of all layers is {total}; shares need a finite number above 0")
    return {layer: value / total for layer, value in trace.items()}


def share_shift(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Give the Jensen–Shannon divergence of two traces' layer shares: from 0, none, to log 2 nats.

    It tells whether the information still moves between layers, as in a network that is plastic.

    Raises:
        ValueError: the layers differ, or as `layer_shares`.

    Source: Lin 1991; of layers' Fisher information, whose course Achille et al. 2019 follow.

    >>> share_shift({"0": 1.0, "2": 1.0}, {"0": 5.0, "2": 5.0})
    0.0
    """
    if before.keys() != after.keys():
        raise ValueError(f"layers are {list(before)} before and {list(after)} after; give traces of one model")
    p, q = (torch.tensor([layer_shares(t)[layer] for layer in before], dtype=torch.float64) for t in (before, after))
    middle = (p + q) / 2
    parts = [torch.special.xlogy(x, x) - torch.special.xlogy(x, middle) for x in (p, q)]
    return float(max(torch.stack(parts).sum() / 2, torch.tensor(0.0)))


def information_in_weights(
    model: nn.Module, fisher: Mapping[str, Tensor], beta: float, prior_std: float
) -> dict[str, float]:
    """Information in the weights by layer: the divergence of their Gaussian posterior from the prior, in nats.

    With the prior N(0, λ²) and the loss, a mean negative log-likelihood whose curvature is F, the
    posterior that minimises E[loss] + β KL is N(w, λ² / (1 + r)), r = λ² F / β. Its divergence is
    ½ Σ_i [w_i²/λ² + log(1 + r_i) − r_i / (1 + r_i)].

    Args:
        model: with the weights w.
        fisher: F by parameter name, of the parameter's shape, from `mas.fisher_importance`.
        beta: β, above 0: what a nat costs, in nats of the mean loss. 1/N for N training samples
            gives the usual posterior.
        prior_std: λ, above 0, in units of weight.

    Returns:
        Nats by layer, for the layers that ``fisher`` names.

    Raises:
        ValueError: β or λ not above 0; F of other names or shapes, or negative.
        FloatingPointError: F is not finite: the training has blown up.

    Source: Achille, Paolini and Soatto 2019 (arXiv 1905.12213), Where is the Information in a Deep
    Neural Network?

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> information_in_weights(model, {"weight": torch.zeros(1, 1)}, beta=1.0, prior_std=1.0)
    {'model': 2.0}
    """
    ratio = _ratio(fisher, beta, prior_std)
    weights = _weights(model, fisher)
    return by_layer(
        {name: 0.5 * ((weights[name] / prior_std).square() + r.log1p() - r / (1 + r)) for name, r in ratio.items()}
    )


def posterior_std(fisher: Mapping[str, Tensor], beta: float, prior_std: float) -> dict[str, Tensor]:
    """Give the standard deviation of each weight's posterior, λ / √(1 + λ² F / β), in units of weight.

    Args and raises: as `information_in_weights`.
    """
    return {name: prior_std / (1 + r).sqrt() for name, r in _ratio(fisher, beta, prior_std).items()}


class NoisePoint(NamedTuple):
    """One point of the trade-off between information and accuracy."""

    beta: float
    information: float  # in all weights, nats
    accuracy: float  # mean over draws of noise, from 0 to 1
    accuracy_std: float  # over draws; NaN for one


def accuracy_information_curve(
    model: nn.Module,
    batches: Sequence[Batch],
    fisher: Mapping[str, Tensor],
    betas: Sequence[float],
    prior_std: float,
    draws: int = 10,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
) -> list[NoisePoint]:
    """Accuracy with weights drawn from their posterior, against the information that they then hold, over β.

    Args:
        model, fisher, prior_std: as for `information_in_weights`.
        batches: of ``(x, y, ...)``; gone through once a draw.
        betas: β of each point.
        draws: of all weights' noise a point.
        forward: ``forward(model, batch)`` gives the logits where ``model(x)`` would not.
        generator: of the noise, on the CPU; by default a fresh one, seeded 0. Every β sees the same
            noise, but for its size.

    Raises:
        ValueError: no draws or no samples, batches without labels, or as `information_in_weights`.

    Source: Achille, Paolini and Soatto 2019 (the information Lagrangian).
    """
    state = (generator or torch.Generator().manual_seed(0)).get_state()
    points = []
    for beta in betas:
        noise = torch.Generator()
        noise.set_state(state)
        std = posterior_std(fisher, beta, prior_std)
        found = accuracy_under_noise(model, batches, std, draws, forward, noise)
        nats = sum(information_in_weights(model, fisher, beta, prior_std).values())
        spread = float(found.std()) if draws > 1 else float("nan")
        points.append(NoisePoint(beta, nats, float(found.mean()), spread))
    return points


def accuracy_under_noise(
    model: nn.Module,
    batches: Sequence[Batch],
    std: Mapping[str, Tensor],
    draws: int = 10,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Accuracy with Gaussian noise on the weights, drawn anew ``draws`` times: shape (draws,), float64.

    Args:
        model, batches, draws, forward, generator: as for `accuracy_information_curve`.
        std: standard deviation of the noise by parameter name, of the parameter's shape.

    Raises:
        ValueError: as `accuracy_information_curve`.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; give a number of at least 1")
    generator = generator or torch.Generator().manual_seed(0)
    weights = _weights(model, std)
    found = []
    for _ in range(draws):
        noise = {n: torch.randn(s.shape, generator=generator, dtype=torch.float64).to(s) * s for n, s in std.items()}
        with measuring(model), torch.no_grad(), _values(model, {n: w + noise[n] for n, w in weights.items()}):
            found.append(_accuracy(model, batches, forward or run_forward))
    return torch.tensor(found, dtype=torch.float64)


@contextmanager
def _values(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Lend parameters other values. Their own tensors are put aside, not written to, so that nothing can tell."""
    own = {name: p for name, p in named_parameters(model).items() if name in values}
    aside = {name: p.data for name, p in own.items()}
    try:
        for name, p in own.items():
            p.data = values[name]
        yield
    finally:
        for name, p in own.items():
            p.data = aside[name]


def _accuracy(model: nn.Module, batches: Iterable[Batch], forward: Forward) -> float:
    right = seen = 0
    for batch in batches:
        if isinstance(batch, Tensor) or len(batch) < 2:
            raise ValueError("accuracy needs batches of (x, y); got unlabelled ones")
        answers = forward(bare(model), batch).argmax(1)
        right += int((answers == batch[1].to(answers.device)).sum())
        seen += len(answers)
    if not seen:
        raise ValueError("batches gave no sample; give a list of batches, which can be gone through again")
    return right / seen


def _ratio(fisher: Mapping[str, Tensor], beta: float, prior_std: float) -> dict[str, Tensor]:
    """Give r = λ² F / β."""
    for name, value in (("beta", beta), ("prior_std", prior_std)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}; give a number above 0")
    if bad := [name for name, f in fisher.items() if not bool(f.isfinite().all())]:
        raise FloatingPointError(f"the Fisher information of {bad[0]!r} is not finite")
    if bad := [name for name, f in fisher.items() if bool((f < 0).any())]:
        raise ValueError(f"the Fisher information of {bad[0]!r} has values that are negative")
    return {name: prior_std**2 * f / beta for name, f in fisher.items()}


def _weights(model: nn.Module, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {name: p.detach() for name, p in named_parameters(model).items()}
    for name, value in like.items():
        if name not in weights or weights[name].shape != value.shape:
            has = tuple(weights[name].shape) if name in weights else "no such parameter"
            raise ValueError(f"{name!r} has shape {tuple(value.shape)} here; in the model: {has}")
    return {name: weights[name] for name in like}
