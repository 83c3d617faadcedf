"""How much the weights know: the Fisher trace by layer, information in the weights, accuracy under noise.

A weight that could be anything without harm holds no information. `information_in_weights` counts
the nats that it takes to tell the weights as exactly as the task needs them; the Fisher information
(`mas.fisher_importance`) says how exactly that is. A network that has diverged raises
FloatingPointError: a weight, an output or what is measured is NaN or infinite.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mas.batches import Batch, Forward, labels_of, run_forward, with_samples
from mas.finite import check_output, check_weights
from mas.importance import Labels, fisher_importance
from mas.state import named_parameters, preserving_state, unwrap_model


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
        As `mas.fisher_importance`. FloatingPointError also if a weight or a trace is not finite.

    Source: Achille, Rovere and Soatto 2019, Critical Learning Periods in Deep Networks.

    With a single class p(c|x) is 1, whatever the weights:

    >>> fisher_trace(nn.Linear(2, 1), [torch.ones(3, 2)])
    {'model': 0.0}
    """
    check_weights(model)  # a bias of -inf looks like a masked class
    fisher = fisher_importance(model, batches, labels, forward, max_samples, generator, max_bytes)
    traces = by_layer(fisher)
    for layer, trace in traces.items():
        if not math.isfinite(trace):
            raise FloatingPointError(f"the Fisher trace of {layer!r} is {trace}; the network has diverged")
    return traces


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

    The prior is N(0, λ²) and the loss L a mean negative log-likelihood over samples, of curvature F:
    E[L] = L(w) + ½ Σ_i F_i σ_i². Among the Gaussians N(w, σ²), E[L] + β KL(posterior ‖ prior) is least
    at σ² = λ² / (1 + r), r = λ² F / β. The divergence is then
    ½ Σ_i [w_i²/λ² + log(1 + r_i) − r_i / (1 + r_i)].

    The scale of β depends on how the trade-off is written. To compare with a β from elsewhere:

    - With the loss summed over N samples, the same posterior has β_sum = N β. So β = 1/N is
      β_sum = 1, the Laplace approximation of the Bayesian posterior.
    - With β_sum / N in front of the divergence, as in PAC-Bayes bounds, it is β_sum again.
    - With a covariance (β'/2) (F + β'/(2λ²))⁻¹, from an expansion of L without the ½, β' = 2 β.

    Args:
        model: with the weights w.
        fisher: F by parameter name, of the parameter's shape, from `mas.fisher_importance`.
        beta: β, above 0: what a nat costs, in nats of the mean loss.
        prior_std: λ, above 0, in units of weight.

    Returns:
        Nats by layer, for the layers that ``fisher`` names.

    Raises:
        ValueError: β or λ not above 0, or so small or large that β or λ² does not fit F's type (in
            float32, β below 1.2e-38 or λ below 1.1e-19); F of other names or shapes, or negative.
        FloatingPointError: a weight or F is not finite: the training has blown up; or the result is
            not finite at this β and λ.

    Source: Achille, Paolini and Soatto 2019 (arXiv 1905.12213), Where is the Information in a Deep
    Neural Network?

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> information_in_weights(model, {"weight": torch.zeros(1, 1)}, beta=1.0, prior_std=1.0)
    {'model': 2.0}
    """
    ratio = _ratio(fisher, beta, prior_std)
    weights = _weights(model, fisher)
    nats = by_layer(
        {name: 0.5 * ((weights[name] / prior_std).square() + r.log1p() - r / (1 + r)) for name, r in ratio.items()}
    )
    for layer, value in nats.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the information in layer {layer!r} is {value} with prior_std={prior_std}; give a larger prior_std"
            )
    return nats


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
        FloatingPointError: as `information_in_weights`, or an output is not finite.

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
        FloatingPointError: a weight is not finite, or an output under noise is not. -inf is accepted
            for some of a sample's outputs, as a mask of classes gives it.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; give a number of at least 1")
    generator = generator or torch.Generator().manual_seed(0)
    found = []
    with preserving_state(model), torch.no_grad():  # also around the weights: another thread may have noise on them
        weights = _weights(model, std)
        for _ in range(draws):
            draw = {n: torch.randn(s.shape, generator=generator, dtype=torch.float64).to(s) * s for n, s in std.items()}
            with _values(model, {n: w + draw[n] for n, w in weights.items()}):
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
    for batch in with_samples(batches):
        y = labels_of(batch, "accuracy")
        output = forward(unwrap_model(model), batch)
        check_output(output, "the network has diverged, or the noise on its weights is too large")
        answers = output.argmax(1)
        right += int((answers == y.to(answers.device)).sum())
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
    for dtype in {torch.result_type(f, 1.0) for f in fisher.values()}:
        _check_range(beta, prior_std, torch.finfo(dtype))
    ratio = {name: prior_std**2 * f / beta for name, f in fisher.items()}
    if bad := [name for name, r in ratio.items() if not bool(r.isfinite().all())]:
        raise FloatingPointError(
            f"λ² F / β of {bad[0]!r} is not finite, with F up to {float(fisher[bad[0]].max()):.3g}, beta={beta} and "
            f"prior_std={prior_std}; the network has diverged, or beta is too small for this prior_std"
        )
    return ratio


def _check_range(beta: float, prior_std: float, limits: torch.finfo) -> None:
    """Raise ValueError unless β and λ² can be told from 0 and infinity in a floating-point type."""
    if beta < limits.tiny:
        raise ValueError(f"beta is {beta}, too small for {limits.dtype}; give a number of at least {limits.tiny:.2g}")
    low, high = math.sqrt(limits.tiny), math.sqrt(limits.max)
    if not low <= prior_std <= high:
        raise ValueError(
            f"prior_std is {prior_std}, whose square does not fit {limits.dtype}; "
            f"give a number from {low:.2g} to {high:.2g}"
        )


def _weights(model: nn.Module, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    check_weights(model)
    weights = {name: p.detach() for name, p in named_parameters(model).items()}
    for name, value in like.items():
        if name not in weights or weights[name].shape != value.shape:
            has = tuple(weights[name].shape) if name in weights else "no such parameter"
            raise ValueError(f"{name!r} has shape {tuple(value.shape)} here; in the model: {has}")
    return {name: weights[name] for name in like}
