"""Information measures of a network: the Fisher trace by layer, information in the weights, accuracy under noise.

A weight that can take any value without changing the loss holds no information.
`information_in_weights` is the number of nats needed to specify the weights as precisely as the
task requires; the Fisher information (`mas.fisher_importance`) determines that precision. All
functions raise FloatingPointError for a network that has diverged: a weight, an output or the
result is NaN or infinite.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mas.batches import Batch, Forward, count_correct, labels_of, run_forward, with_samples
from mas.finite import check_output, check_weights
from mas.importance import Labels, fisher_importance
from mas.state import named_parameters, preserving_state, unwrap_model


def fisher_trace(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    labels: Labels = "exact",
    forward: Forward | None = None,
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
    max_bytes: int | None = None,
) -> dict[str, float]:
    """Return the trace of each layer's Fisher information: tr F_l = 1/N Σ_n E_c ‖∂ log p(c|x_n) / ∂θ_l‖².

    Args:
        model, batches, labels, forward, max_samples, generator, max_bytes: as for
            `mas.fisher_importance`.

    Returns:
        A number per layer, in the model's order: in nats per squared unit of weight, summed over the
        layer's weights. A layer is the module that owns the parameters, see `by_layer`.

    Raises:
        As `mas.fisher_importance`. FloatingPointError also if a weight or a trace is not finite.

    Source: Achille, Rovere and Soatto 2019, Critical Learning Periods in Deep Networks.

    With a single class p(c|x) is 1, whatever the weights:

    >>> fisher_trace(nn.Linear(2, 1), [torch.ones(3, 2)])
    {'model': 0.0}
    """
    check_weights(model)  # a bias of -inf looks like a masked class
    fisher = fisher_importance(
        model,
        batches,
        labels=labels,
        forward=forward,
        max_samples=max_samples,
        generator=generator,
        max_bytes=max_bytes,
    )
    traces = by_layer(fisher)
    for layer, trace in traces.items():
        if not math.isfinite(trace):
            raise FloatingPointError(f"the Fisher trace of {layer!r} is {trace}; the network has diverged")
    return traces


def by_layer(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the sum of the parameters' values over each layer, in double precision.

    The layer of ``body.0.weight`` is ``body.0``. Parameters of the model itself belong to ``model``,
    those of a re-parametrised weight to the module that owns the weight.

    >>> by_layer({"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "scale": torch.ones(1)})
    {'0': 8.0, 'model': 1.0}
    """
    sums: dict[str, float] = {}
    for name, value in values.items():
        layer = _layer_of(name)
        sums[layer] = sums.get(layer, 0.0) + float(value.sum(dtype=torch.float64))
    return sums


def _layer_of(name: str) -> str:
    """Return the name of the layer that owns a parameter."""
    owner, separator, _ = name.partition(".parametrizations.")
    if not separator:
        owner, _, _ = name.rpartition(".")
    return owner or "model"


def layer_shares(trace: Mapping[str, float]) -> dict[str, float]:
    """Return each layer's share of a trace; the shares add up to 1.

    Raises:
        ValueError: the trace is 0, or not finite.

    >>> layer_shares({"0": 3.0, "2": 1.0})
    {'0': 0.75, '2': 0.25}
    """
    total = sum(trace.values())
    if not 0 < total < float("inf"):
        raise ValueError(f"the trace of all layers is {total}; shares need a finite number above 0")
    return {layer: value / total for layer, value in trace.items()}


def share_shift(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the Jensen–Shannon divergence of two traces' layer shares: from 0 to log 2, in nats.

    It measures how much information moves between layers, as it does in a plastic network.

    Raises:
        ValueError: the layers differ, or as `layer_shares`.

    Source: Lin 1991 (the divergence); Achille et al. 2019 (Fisher information by layer over time).

    >>> share_shift({"0": 1.0, "2": 1.0}, {"0": 5.0, "2": 5.0})
    0.0
    """
    if before.keys() != after.keys():
        raise ValueError(f"layers are {list(before)} before and {list(after)} after; give traces of one model")
    layers = list(before)
    p = _share_vector(before, layers)
    q = _share_vector(after, layers)
    middle = (p + q) / 2
    divergences = torch.stack([_divergence_terms(p, middle), _divergence_terms(q, middle)])
    return max(float(divergences.sum() / 2), 0.0)  # rounding may make it negative


def _share_vector(trace: Mapping[str, float], layers: Sequence[str]) -> Tensor:
    shares = layer_shares(trace)
    return torch.tensor([shares[layer] for layer in layers], dtype=torch.float64)


def _divergence_terms(p: Tensor, q: Tensor) -> Tensor:
    """Return p log(p / q), whose sum is KL(p ‖ q)."""
    return torch.special.xlogy(p, p) - torch.special.xlogy(p, q)


def information_in_weights(
    model: nn.Module,
    fisher: Mapping[str, Tensor],
    beta: float,
    prior_std: float,
) -> dict[str, float]:
    """Return the information in the weights by layer: the KL divergence of their posterior from the prior, in nats.

    The prior is N(0, λ²). The loss L is a mean negative log-likelihood over samples with curvature F:
    E[L] = L(w) + ½ Σ_i F_i σ_i². Among the Gaussians N(w, σ²), E[L] + β KL(posterior ‖ prior) is
    minimal at σ² = λ² / (1 + r), r = λ² F / β. The divergence is then
    ½ Σ_i [w_i²/λ² + log(1 + r_i) − r_i / (1 + r_i)].

    The scale of β depends on how the trade-off is written. To compare with a β from elsewhere:

    - With the loss summed over N samples, the same posterior has β_sum = N β. So β = 1/N is
      β_sum = 1, the Laplace approximation of the Bayesian posterior.
    - With β_sum / N in front of the divergence, as in PAC-Bayes bounds, it is β_sum again.
    - With a covariance (β'/2) (F + β'/(2λ²))⁻¹, from an expansion of L without the ½, β' = 2 β.

    Args:
        model: the model with the weights w.
        fisher: F by parameter name, of the parameter's shape, from `mas.fisher_importance`.
        beta: β, above 0: the cost of a nat, in nats of the mean loss.
        prior_std: λ, above 0, in units of weight.

    Returns:
        Nats by layer, for the layers in ``fisher``.

    Raises:
        ValueError: β or λ is not above 0, or β or λ² is out of the range of F's type (in float32, β
            below 1.2e-38 or λ below 1.1e-19); F has other names or shapes than the parameters, or
            negative values.
        FloatingPointError: a weight or F is not finite, as the training has diverged; or the result is
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
    information = {}
    for name, r in ratio.items():
        scaled = weights[name] / prior_std
        information[name] = 0.5 * (scaled.square() + r.log1p() - r / (1 + r))
    nats = by_layer(information)
    for layer, value in nats.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the information in layer {layer!r} is {value} with prior_std={prior_std}; give a larger prior_std"
            )
    return nats


def posterior_std(fisher: Mapping[str, Tensor], beta: float, prior_std: float) -> dict[str, Tensor]:
    """Return the standard deviation of each weight's posterior, λ / √(1 + λ² F / β), in units of weight.

    Args and raises: as `information_in_weights`.
    """
    ratio = _ratio(fisher, beta, prior_std)
    return {name: prior_std / (1 + r).sqrt() for name, r in ratio.items()}


class NoisePoint(NamedTuple):
    """One point of the trade-off between information and accuracy."""

    beta: float
    information: float  # in all weights, nats
    accuracy: float  # mean over draws of noise, from 0 to 1
    accuracy_std: float  # standard deviation over draws; NaN for a single draw


def accuracy_information_curve(
    model: nn.Module,
    batches: Sequence[Batch],
    fisher: Mapping[str, Tensor],
    betas: Sequence[float],
    prior_std: float,
    *,
    draws: int = 10,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
) -> list[NoisePoint]:
    """Return accuracy with weights drawn from their posterior, and their information, for each β.

    Args:
        model, fisher, prior_std: as for `information_in_weights`.
        batches: of ``(x, y, ...)``; iterated over once per draw.
        betas: β of each point.
        draws: number of draws of the noise per point.
        forward: ``forward(model, batch)`` returns the logits; by default ``model(x)``.
        generator: draws the noise, on the CPU; by default a new one, seeded 0. The noise of
            different β differs only by its scale.

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
        accuracies = accuracy_under_noise(model, batches, std, draws=draws, forward=forward, generator=noise)
        nats = information_in_weights(model, fisher, beta, prior_std)
        point = NoisePoint(
            beta=beta,
            information=sum(nats.values()),
            accuracy=float(accuracies.mean()),
            accuracy_std=float(accuracies.std()) if draws > 1 else math.nan,
        )
        points.append(point)
    return points


def accuracy_under_noise(
    model: nn.Module,
    batches: Sequence[Batch],
    std: Mapping[str, Tensor],
    *,
    draws: int = 10,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the accuracy with Gaussian noise on the weights for each of ``draws`` draws: shape (draws,), float64.

    Args:
        model, batches, draws, forward, generator: as for `accuracy_information_curve`.
        std: standard deviation of the noise, by parameter name, of the parameter's shape.

    Raises:
        ValueError: as `accuracy_information_curve`.
        FloatingPointError: a weight, or an output under noise, is not finite. -inf is accepted for
            some of a sample's outputs, as in a mask of classes.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; give a number of at least 1")
    run = forward or run_forward
    generator = generator or torch.Generator().manual_seed(0)
    accuracies = []
    with preserving_state(model), torch.no_grad():  # within it no other thread has noise on the weights
        weights = _weights(model, std)
        for _ in range(draws):
            noisy = {}
            for name, scale in std.items():
                noise = torch.randn(scale.shape, generator=generator, dtype=torch.float64).to(scale)
                noisy[name] = weights[name] + noise * scale
            with _swapped_parameters(model, noisy):
                accuracies.append(_accuracy(model, batches, run))
    return torch.tensor(accuracies, dtype=torch.float64)


@contextmanager
def _swapped_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Temporarily swap parameter data; the original tensors are restored untouched."""
    swapped = {name: p for name, p in named_parameters(model).items() if name in values}
    originals = {name: p.data for name, p in swapped.items()}
    try:
        for name, parameter in swapped.items():
            parameter.data = values[name]
        yield
    finally:
        for name, parameter in swapped.items():
            parameter.data = originals[name]


def _accuracy(model: nn.Module, batches: Iterable[Batch], run: Forward) -> float:
    correct = 0
    total = 0
    for batch in with_samples(batches):
        labels = labels_of(batch, "accuracy")
        output = run(unwrap_model(model), batch)
        check_output(output, "the network has diverged, or the noise on its weights is too large")
        correct += count_correct(output, labels)
        total += len(output)
    if total == 0:
        raise ValueError("batches gave no sample; give a list of batches, which can be gone through again")
    return correct / total


def _ratio(fisher: Mapping[str, Tensor], beta: float, prior_std: float) -> dict[str, Tensor]:
    """Return r = λ² F / β by parameter name."""
    _check_above_zero("beta", beta)
    _check_above_zero("prior_std", prior_std)
    for name, f in fisher.items():
        if not bool(f.isfinite().all()):
            raise FloatingPointError(f"the Fisher information of {name!r} is not finite")
    for name, f in fisher.items():
        if bool((f < 0).any()):
            raise ValueError(f"the Fisher information of {name!r} has values that are negative")
    for dtype in {torch.result_type(f, 1.0) for f in fisher.values()}:
        _check_range(beta, prior_std, torch.finfo(dtype))
    ratio = {}
    for name, f in fisher.items():
        r = prior_std**2 * f / beta
        if not bool(r.isfinite().all()):
            raise FloatingPointError(
                f"λ² F / β of {name!r} is not finite, with F up to {float(f.max()):.3g}, beta={beta} and "
                f"prior_std={prior_std}; the network has diverged, or beta is too small for this prior_std"
            )
        ratio[name] = r
    return ratio


def _check_above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; give a number above 0")


def _check_range(beta: float, prior_std: float, limits: torch.finfo) -> None:
    """Raise ValueError unless β and λ² are normal numbers, neither 0 nor infinite, in a floating-point type."""
    if beta < limits.tiny:
        raise ValueError(f"beta is {beta}, too small for {limits.dtype}; give a number of at least {limits.tiny:.2g}")
    low = math.sqrt(limits.tiny)
    high = math.sqrt(limits.max)
    if not low <= prior_std <= high:
        raise ValueError(
            f"prior_std is {prior_std}, whose square does not fit {limits.dtype}; "
            f"give a number from {low:.2g} to {high:.2g}"
        )


def _weights(model: nn.Module, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the names in ``like``.

    Raises:
        ValueError: the model has no such parameter, or it has another shape.
        FloatingPointError: a weight is not finite.
    """
    check_weights(model)
    params = named_parameters(model)
    weights = {}
    for name, value in like.items():
        if name not in params or params[name].shape != value.shape:
            has = tuple(params[name].shape) if name in params else "no such parameter"
            raise ValueError(f"{name!r} has shape {tuple(value.shape)} here; in the model: {has}")
        weights[name] = params[name].detach()
    return weights
