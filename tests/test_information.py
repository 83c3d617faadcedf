"""Information measures against loops, closed forms, numerical minima and Monte-Carlo estimates."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn.utils.parametrizations import weight_norm

import mas
from mas import (
    accuracy_information_curve,
    accuracy_under_noise,
    by_layer,
    fisher_trace,
    information_in_weights,
    layer_shares,
    posterior_std,
    share_shift,
)
from tests.cases import classify, make
from tests.conftest import assert_same
from tests.oracles.moments import fisher_by_loop

WHOLE = ("mlp", "lenet", "small_cnn", "residual", "vit", "gpt", "lstm_classifier", "weight_norm")


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def data(n=12):
    return [(torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))) for _ in range(2)]


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted"])
@pytest.mark.parametrize("name", WHOLE)
def test_law_1_the_trace_is_that_of_a_loop_over_samples_and_classes(name, labels):
    case = classify(make(name))
    found = fisher_trace(case.model, [case.batch], labels=labels, forward=case.forward)
    loop = fisher_by_loop(case.model.eval(), case.batch, labels, case.forward)
    expected = {}
    for name_of, value in loop.items():
        layer = name_of.partition(".parametrizations.")[0] if "parametr" in name_of else name_of.rpartition(".")[0]
        expected[layer or "model"] = expected.get(layer or "model", 0.0) + value.sum().item()
    assert found.keys() == expected.keys()
    for layer, value in expected.items():
        assert found[layer] == pytest.approx(value, rel=1e-10, abs=1e-12)


def test_layers_are_the_modules_that_hold_parameters():
    model = nn.ModuleDict({"a": weight_norm(nn.Linear(2, 3)), "b": nn.MultiheadAttention(4, 2)})
    model.scale = nn.Parameter(torch.ones(2))
    sums = by_layer({name: torch.ones_like(p) for name, p in model.named_parameters()})
    assert set(sums) == {"model", "a", "b", "b.out_proj"}
    assert sums["a"] == 3 + 3 + 6
    assert sums["model"] == 2


def test_shares_and_their_shift():
    before, after = {"0": 1.0, "2": 3.0, "4": 4.0}, {"0": 6.0, "2": 2.0, "4": 0.0}
    assert layer_shares(before) == {"0": 0.125, "2": 0.375, "4": 0.5}
    expected = jensenshannon(np.array([1, 3, 4]) / 8, np.array([6, 2, 0]) / 8) ** 2
    assert share_shift(before, after) == pytest.approx(expected, rel=1e-12)
    assert share_shift(before, {k: 7 * v for k, v in before.items()}) == pytest.approx(0, abs=1e-15)
    assert share_shift({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}) == pytest.approx(math.log(2))


BETA, PRIOR = 0.03, 0.7


def linear_gaussian():
    """y = w x + noise of deviation 1: the loss ½ (y − w x)² has the curvature F = mean of x_i² in each weight."""
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    return model, {"weight": x.square().mean(0)[None]}


def test_information_is_the_least_that_the_trade_off_allows():
    """For each weight a Gaussian minimises E[loss] + β KL; its divergence, found numerically, is the information."""
    model, fisher = linear_gaussian()
    total = 0.0
    for w, f in zip(model.weight.detach()[0].tolist(), fisher["weight"][0].tolist(), strict=True):

        def kl(log_std, w=w):
            posterior = Normal(torch.tensor(w).double(), torch.tensor(float(log_std)).double().exp())
            return kl_divergence(posterior, Normal(torch.zeros(()).double(), torch.tensor(PRIOR).double())).item()

        found = minimize_scalar(
            lambda s, f=f, kl=kl: 0.5 * f * math.exp(2 * s) + BETA * kl(s), bounds=(-10, 5), options={"xatol": 1e-10}
        )
        total += kl(found.x)
    (information,) = information_in_weights(model, fisher, BETA, PRIOR).values()
    assert information == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.2, 50.0])
def test_beta_is_that_of_the_summed_loss_over_n(temperature):
    """β = T/N for N samples of the exact posterior ∝ prior · likelihood^(1/T); for T = 1 that is Bayes' theorem."""
    x, y = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    precision = 1 / PRIOR**2 + x.square().sum() / temperature
    posterior = Normal((x * y).sum() / temperature / precision, precision.rsqrt())
    fisher, beta = {"weight": x.square().mean()[None, None]}, temperature / 50
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(posterior.mean)
    assert posterior_std(fisher, beta, PRIOR)["weight"].item() == pytest.approx(posterior.stddev.item(), rel=1e-12)
    (information,) = information_in_weights(model, fisher, beta, PRIOR).values()
    expected = kl_divergence(posterior, Normal(torch.zeros(()).double(), PRIOR)).item()
    assert information == pytest.approx(expected, rel=1e-12)

    def summed_loss_and_divergence(log_std):
        q = Normal(posterior.mean, torch.tensor(float(log_std)).double().exp())
        loss = 0.5 * ((y - posterior.mean * x).square() + q.variance * x.square()).sum()  # E_q of the sum over samples
        return (loss + temperature * kl_divergence(q, Normal(torch.zeros(()).double(), PRIOR))).item()

    found = minimize_scalar(summed_loss_and_divergence, bounds=(-10, 5), options={"xatol": 1e-10})
    assert math.exp(found.x) == pytest.approx(posterior.stddev.item(), rel=1e-5)


def test_beta_of_an_expansion_without_one_half_is_twice_as_large():
    """A covariance (β'/2) (F + β'/(2λ²))⁻¹ is the one here at β' = 2 β."""
    _, fisher = linear_gaussian()
    other = 2 * BETA
    expected = (other / 2) / (fisher["weight"] + other / (2 * PRIOR**2))
    assert_same({"weight": posterior_std(fisher, BETA, PRIOR)["weight"].square()}, {"weight": expected}, 1e-12)


def test_information_is_a_monte_carlo_mean_of_log_posterior_over_prior():
    model, fisher = linear_gaussian()
    std = posterior_std(fisher, BETA, PRIOR)["weight"]
    posterior, prior = Normal(model.weight.detach(), std), Normal(torch.zeros(()).double(), PRIOR)
    draws = posterior.sample((200_000,))
    ratio = (posterior.log_prob(draws) - prior.log_prob(draws)).sum((1, 2))
    (information,) = information_in_weights(model, fisher, BETA, PRIOR).values()
    assert information == pytest.approx(ratio.mean().item(), abs=5 * ratio.std().item() / 200_000**0.5)


def test_information_adds_up_over_layers_and_is_the_formula():
    model = network()
    fisher = mas.fisher_importance(model, data())
    found = information_in_weights(model, fisher, BETA, PRIOR)
    assert list(found) == ["0", "1", "4"]
    expected = 0.0
    for name, p in model.named_parameters():
        for w, f in zip(p.flatten().tolist(), fisher[name].flatten().tolist(), strict=True):
            r = PRIOR**2 * f / BETA
            expected += 0.5 * (w**2 / PRIOR**2 + math.log(1 + r) - r / (1 + r))
    assert sum(found.values()) == pytest.approx(expected, rel=1e-12)


# Accuracy under noise.


def test_without_noise_it_is_the_accuracy():
    model, batches = network(), data()
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    right = sum((model.eval()(x).argmax(1) == y).sum().item() for x, y in batches) / 24
    assert accuracy_under_noise(model, batches, zero, draws=3).tolist() == [right] * 3


def test_noise_has_the_shape_that_was_asked_for():
    """By hand: the same draws added to a copy's weights."""
    model, batches = network(), data()
    std = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    found = accuracy_under_noise(model, batches, std, draws=4, generator=torch.Generator().manual_seed(5))
    draw = torch.Generator().manual_seed(5)
    for accuracy in found.tolist():
        other = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, p in other.named_parameters():
                p.add_(std[name] * torch.randn(p.shape, generator=draw, dtype=torch.float64))
        assert accuracy == sum((other(x).argmax(1) == y).sum().item() for x, y in batches) / 24
    assert len(set(found.tolist())) > 1


def test_the_curve_goes_from_knowing_all_to_knowing_nothing():
    torch.manual_seed(1)
    model, (x, _) = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3)).double(), data(200)[0]
    batches = [(x, model(x).argmax(1))]  # it is always right
    fisher = mas.fisher_importance(model, batches)
    points = accuracy_information_curve(model, batches, fisher, [1e-8, 1e-3, 1.0, 1e3], PRIOR, draws=5)
    assert [p.beta for p in points] == [1e-8, 1e-3, 1.0, 1e3]
    assert points[0].accuracy > 0.99
    assert points[-1].accuracy < 0.8
    assert all(a.information > b.information for a, b in itertools.pairwise(points))
    assert points[1].information == pytest.approx(sum(information_in_weights(model, fisher, 1e-3, PRIOR).values()))
    std = posterior_std(fisher, 1.0, PRIOR)
    by_hand = accuracy_under_noise(model, batches, std, draws=5)
    assert (points[2].accuracy, points[2].accuracy_std) == pytest.approx((by_hand.mean().item(), by_hand.std().item()))


# What diverged, what is empty, and what does not fit a number.


def curve(model, batches, forward=None):
    fisher = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    return accuracy_information_curve(model, batches, fisher, [0.1], 1.0, draws=2, forward=forward)


def under_noise(model, batches, forward=None):
    std = {name: torch.full_like(p, 0.1) for name, p in model.named_parameters()}
    return accuracy_under_noise(model, batches, std, draws=2, forward=forward)


OVER_BATCHES = {
    "fisher_trace": lambda m, b, forward=None: fisher_trace(m, b, forward=forward),
    "fisher_trace_empirical": lambda m, b, forward=None: fisher_trace(m, b, labels="empirical", forward=forward),
    "accuracy_information_curve": curve,
    "accuracy_under_noise": under_noise,
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", ["0.weight", "4.bias"])
@pytest.mark.parametrize("name", OVER_BATCHES)
def test_law_11_a_weight_that_is_not_finite_is_a_blow_up(name, weight, value):
    model = network()
    model.get_parameter(weight).data.view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match=f"parameter '{weight}' has values that are not finite"):
        OVER_BATCHES[name](model, data())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_law_11_a_weight_that_is_not_finite_holds_no_information(value):
    model = network()
    fisher = mas.fisher_importance(model, data())
    model[4].bias.data[-1] = value
    with pytest.raises(FloatingPointError, match=r"parameter '4\.bias' has values that are not finite"):
        information_in_weights(model, fisher, BETA, PRIOR)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", OVER_BATCHES)
def test_law_11_an_output_that_is_not_finite_is_a_blow_up(name, value):
    """Of a single sample, with finite weights."""

    def run(m, batch):
        factor = torch.ones(len(batch[0]), 1, dtype=torch.float64)
        factor[-1] = value
        return m(batch[0]) * factor

    with pytest.raises(FloatingPointError):
        OVER_BATCHES[name](network(), data(), run)


def test_law_11_a_trace_or_noise_that_is_not_finite_is_a_blow_up():
    model = network()
    model[4].weight.data.fill_(1e200)
    with pytest.raises(FloatingPointError, match=r"trace of .* is inf|not finite"):
        fisher_trace(model, data(), labels="empirical", forward=lambda m, b: m(b[0]) * torch.tensor([1.0, 2.0, 3.0]))
    std = {"0.weight": torch.full((6, 4), math.inf).double()}
    with pytest.raises(FloatingPointError, match=r"output is not finite; .* noise on its weights is too large"):
        accuracy_under_noise(network(), data(), std)


def test_accuracy_under_noise_takes_masked_classes():
    mask = torch.tensor([0, 0, -math.inf])
    found = under_noise(network(), data(), lambda m, b: m(b[0]) + mask)
    torch.manual_seed(0)
    assert torch.equal(found, under_noise(network(), data(), lambda m, b: m(b[0])[:, :2]))


def empty():
    return (torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("name", OVER_BATCHES)
def test_law_2_batches_without_samples_do_not_matter(name):
    model, (first, second) = network(), data()

    def run(m, batch):
        assert len(batch[0]), "some models cannot take a batch without samples"
        return m(batch[0])

    expected = OVER_BATCHES[name](model, [first, second])
    for batches in ([empty(), first, second], [first, empty(), second, empty()]):
        found = OVER_BATCHES[name](model, batches, run)
        assert torch.equal(found, expected) if name == "accuracy_under_noise" else found == expected


@pytest.mark.parametrize("batches", [[], [empty()], [empty(), empty()]], ids=["none", "one", "two"])
@pytest.mark.parametrize("name", OVER_BATCHES)
def test_no_sample_at_all_is_one_clear_error(name, batches):
    with pytest.raises(ValueError, match="batches gave no sample; give"):
        OVER_BATCHES[name](network(), batches)


MEASURES = {
    "information": information_in_weights,
    "std": lambda model, fisher, beta, prior_std: posterior_std(fisher, beta, prior_std),
    "curve": lambda model, fisher, beta, prior_std: accuracy_information_curve(model, [], fisher, [beta], prior_std),
}


@pytest.mark.parametrize(
    ("dtype", "beta", "prior_std", "message"),
    [
        (torch.float32, 1e-300, 1.0, r"beta is 1e-300, too small for float32; give a number of at least 1\.2e-38"),
        (torch.float32, 1e-40, 1.0, "beta is 1e-40, too small for float32"),
        (torch.float64, 5e-324, 1.0, "beta is 5e-324, too small for float64"),
        (torch.float32, 1.0, 1e-300, r"prior_std is 1e-300, .* float32; give a number from 1\.1e-19 to 1\.8e\+19"),
        (torch.float32, 1.0, 1e-25, "prior_std is 1e-25, whose square does not fit float32"),
        (torch.float32, 1.0, 1e25, r"prior_std is 1e\+25, whose square does not fit float32"),
        (torch.float64, 1.0, 1e-300, "prior_std is 1e-300, whose square does not fit float64"),
        (torch.float64, 1.0, 1e300, r"prior_std is 1e\+300, whose square does not fit float64"),
        (torch.float64, 1e-300, 1e-300, "is 1e-300"),
    ],
)
@pytest.mark.parametrize("name", MEASURES)
def test_a_beta_or_prior_that_does_not_fit_is_one_clear_error(name, dtype, beta, prior_std, message):
    model = nn.Linear(2, 3).to(dtype)
    fisher = {n: torch.rand_like(p, requires_grad=False) for n, p in model.named_parameters()}
    fisher["bias"][0] = 0  # 0 / 0 gave NaN
    with pytest.raises(ValueError, match=message):
        MEASURES[name](model, fisher, beta, prior_std)


@pytest.mark.parametrize("name", MEASURES)
def test_a_ratio_that_overflows_is_told(name):
    model = nn.Linear(2, 3)
    fisher = {n: torch.full_like(p, 1e10, requires_grad=False) for n, p in model.named_parameters()}
    with pytest.raises(
        FloatingPointError, match=r"λ² F / β of 'weight' is not finite, with F up to 1e\+10, beta=1e-30"
    ):
        MEASURES[name](model, fisher, 1e-30, 1.0)


def test_information_that_overflows_is_told():
    model = nn.Linear(2, 3)
    model.weight.data.fill_(100.0)
    fisher = {n: torch.zeros_like(p, requires_grad=False) for n, p in model.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"layer 'model' is inf with prior_std=1\.1e-19; give a larger"):
        information_in_weights(model, fisher, 1.0, 1.1e-19)


@pytest.mark.parametrize(("beta", "prior_std"), [(1.2e-38, 1e-15), (1e30, 1.1e-19), (1e30, 1.8e19), (1e300, 1.0)])
def test_the_range_of_beta_and_prior_is_used_to_its_ends(beta, prior_std):
    model = nn.Linear(2, 3)
    fisher = {n: torch.rand_like(p, requires_grad=False) * 1e-9 for n, p in model.named_parameters()}
    found = sum(information_in_weights(model, fisher, beta, prior_std).values())
    expected = 0.0
    for name, p in model.named_parameters():
        for w, f in zip(p.flatten().tolist(), fisher[name].flatten().tolist(), strict=True):
            r = prior_std**2 * f / beta
            expected += 0.5 * (w**2 / prior_std**2 + math.log1p(r) - r / (1 + r))
    assert found == pytest.approx(expected, rel=1e-3)


# Law 3.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "probe",
    [
        fisher_trace,
        lambda m, b: fisher_trace(m, b, labels="sampled"),
        lambda m, b: accuracy_information_curve(m, b, mas.fisher_importance(m, b), [0.1], 1.0, draws=2),
    ],
)
def test_law_3_probes_change_nothing(probe, training):
    model, batches = network().train(training), data()
    model(batches[0][0]).sum().backward()
    waiting = model(batches[1][0]).sum()  # a graph that is still to be used
    versions = [(p, p._version, p.data_ptr()) for p in model.parameters()]
    state, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    probe(model, batches)
    assert_same(model.state_dict(), state, 0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all((p._version, p.data_ptr()) == (v, place) for p, v, place in versions)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training is training for module in model.modules())
    waiting.backward()


def test_weights_come_back_when_a_forward_pass_fails():
    model, batches = network(), data()
    before = copy.deepcopy(model.state_dict())

    def fails(m, batch):
        raise RuntimeError("oh")

    with pytest.raises(RuntimeError, match="oh"):
        accuracy_under_noise(model, batches, {"0.weight": torch.ones(6, 4).double()}, forward=fails)
    assert_same(model.state_dict(), before, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, f: information_in_weights(m, f, 0.0, 1.0), "beta is 0.0; give a number above 0"),
        (lambda m, f: information_in_weights(m, f, 1.0, math.inf), "prior_std is inf; give a number above 0"),
        (lambda m, f: information_in_weights(m, {"x": f["0.weight"]}, 1.0, 1.0), "in the model: no such parameter"),
        (
            lambda m, f: information_in_weights(m, {"0.bias": f["0.weight"]}, 1.0, 1.0),
            r"\(6, 4\) here; in the model: ",
        ),
        (lambda m, f: posterior_std({"0.bias": -f["0.bias"] - 1}, 1.0, 1.0), "'0.bias' has values that are negative"),
        (lambda m, f: posterior_std({"0.bias": f["0.bias"] - 1e9}, 1.0, 1.0), "has values that are negative"),
        (lambda m, f: accuracy_under_noise(m, [torch.ones(2, 4).double()], f), "accuracy needs batches of"),
        (lambda m, f: accuracy_under_noise(m, [], f), "batches gave no sample"),
        (lambda m, f: accuracy_under_noise(m, data(), f, draws=0), "draws is 0; give a number of at least 1"),
        (lambda m, f: layer_shares({"0": 0.0}), "the trace of all layers is 0.0"),
        (lambda m, f: share_shift({"0": 1.0}, {"1": 1.0}), r"layers are \['0'\] before and \['1'\] after"),
    ],
)
def test_wrong_use_is_one_clear_error(call, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        call(model, mas.fisher_importance(model, data()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_fisher_information_that_is_not_finite_is_a_blow_up(value):
    fisher = {"0.bias": torch.tensor([1.0, value])}
    with pytest.raises(FloatingPointError, match=r"'0\.bias' is not finite"):
        posterior_std(fisher, 1.0, 1.0)
