"""Plasticity probes against hooks, loops and hand-written training."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from mas import (
    dead_units,
    dormant_units,
    effective_rank,
    features,
    gradient_norm,
    mean_weight,
    stable_rank,
    trainability,
    unit_activity,
)
from tests.conftest import assert_same


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def data():
    return [(torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))) for n in (12, 5)]


class Functional(nn.Module):
    """Convolutions, tokens and plain units; activations called as functions, one module calling two."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.conv1 = nn.Conv1d(4, 5, 1)
        self.tokens = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)
        self.seen = []

    def forward(self, x):  # (N, 1, 4, 4)
        a = F.relu(self.conv(x))  # (N, 3, 2, 2): units on axis 1
        b = torch.tanh(self.conv1(x[:, 0]))  # (N, 5, 4): units on axis 1
        c = F.gelu(self.tokens(x[:, 0]))  # (N, 4, 6): units on the last axis
        self.seen.append((a, b, c))
        return self.head(c.mean(1)) + a.mean() + b.mean()


def test_activity_is_that_of_every_call_by_its_units():
    model = Functional().double()
    batches = [torch.randn(n, 1, 4, 4, dtype=torch.float64) for n in (5, 3)]
    found = unit_activity(model, batches)
    assert list(found) == ["model", "model#2", "model#3"]
    for number, (own, axis) in enumerate(zip(found.values(), (1, 1, -1), strict=True)):
        every = torch.cat([seen[number].movedim(axis, 0).flatten(1) for seen in model.seen], 1).abs()
        assert_same(
            {"mean": own.mean, "largest": own.largest}, {"mean": every.mean(1), "largest": every.amax(1)}, 1e-12
        )


def test_activity_is_named_by_the_module_and_pooled_over_batches():
    model, batches = network(), data()
    found = unit_activity(model, batches)
    assert list(found) == ["2"]
    hidden = torch.cat([model.eval()[:3](x) for x, _ in batches]).abs()
    torch.testing.assert_close(found["2"].mean, hidden.mean(0).detach(), rtol=1e-12, atol=0)
    together = unit_activity(model, [(torch.cat([x for x, _ in batches]),)])
    torch.testing.assert_close(together["2"].mean, found["2"].mean, rtol=1e-12, atol=0)


class Whole(nn.Module):
    """The root module calls the activation itself."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(F.relu(self.inner(x)))


@pytest.mark.parametrize("make", [network, lambda: Whole().double()])
def test_watching_leaves_the_models_output_as_it_is(make):
    model, batches, seen = make(), data(), []

    def run(m, batch):
        seen.append(m(batch[0]))
        assert isinstance(seen[-1], torch.Tensor)
        return seen[-1]

    assert unit_activity(model, batches, forward=run).keys() == unit_activity(model, batches).keys()
    for (x, _), output in zip(batches, seen, strict=True):
        assert torch.equal(output, model.eval()(x))


def test_a_unit_without_values_is_left_out_of_a_batch():
    """Like an expert that no sample of a batch is sent to."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return torch.cat([F.relu(self.layer(x[x[:, 0] > 0])), F.relu(self.layer(x[x[:, 0] <= 0]))])

    model, x = Routed().double(), torch.randn(8, 4, dtype=torch.float64)
    x[:, 0] = x[:, 0].abs()
    found = unit_activity(model, [x, -x])
    expected = F.relu(model.layer(x)).detach()
    torch.testing.assert_close(found["model"].mean, expected.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found["model#2"].largest, F.relu(model.layer(-x)).detach().amax(0), rtol=1e-12, atol=0)


def test_dormant_and_dead_units():
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data.copy_(torch.tensor([[3.0], [-1.0], [0.9], [0.06]]))  # mean |h| of x = 1: 3, 0, 0.9, 0.06
    assert dead_units(model, [torch.ones(2, 1)]) == {"1": 0.25}
    assert dead_units(model, [torch.tensor([[1.0], [-1.0]])]) == {"1": 0.0}
    mean = 3.96 / 4
    for threshold in (0.0, 0.05, 0.07, 1.0):
        expected = sum(h <= threshold * mean for h in (3, 0, 0.9, 0.06)) / 4
        assert dormant_units(model, [torch.ones(2, 1)], threshold=threshold) == {"1": expected}


def test_features_are_what_the_last_layer_is_fed():
    model, batches = network(), data()
    found = features(model, batches)
    expected = torch.cat([model.eval()[:4](x) for x, _ in batches]).detach()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(7, 4), (3, 9)])
def test_ranks(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    singular = np.linalg.svd(matrix.numpy(), compute_uv=False)
    p = singular / singular.sum()
    assert effective_rank(matrix) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-10)
    assert stable_rank(matrix) == pytest.approx((singular**2).sum() / singular.max() ** 2, rel=1e-10)
    one = torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 4))
    assert effective_rank(one) == pytest.approx(1, abs=1e-5)
    assert stable_rank(one) == pytest.approx(1, abs=1e-9)
    assert effective_rank(torch.zeros(2, 2)) == stable_rank(torch.zeros(2, 2)) == 0


def test_mean_weight_counts_every_trained_weight():
    model = network()
    model[0].weight.requires_grad_(False)
    every = torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])
    assert mean_weight(model) == pytest.approx(every.abs().mean().item(), rel=1e-12)


def test_gradient_norm_is_that_of_the_mean_loss_over_all_samples():
    model, batches = network(), data()
    found = gradient_norm(model, batches)
    x, y = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    F.cross_entropy(model.eval()(x), y).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert found == pytest.approx(expected, rel=1e-10)
    squared = gradient_norm(model, [(x, torch.ones(17, 3).double())], loss=nn.MSELoss())
    assert squared != pytest.approx(expected)


def test_trainability_is_the_loss_after_training_on_random_labels():
    """By hand, without dropout, whose masks come from the global stream."""
    model, batches = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double(), data()
    draw = torch.Generator().manual_seed(4)
    found = trainability(model, batches, steps=7, lr=0.1, generator=torch.Generator().manual_seed(4))
    labels = [torch.randint(3, (len(x),), generator=draw) for x, _ in batches]
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9)
    for step in range(7):
        optimizer.zero_grad()
        F.cross_entropy(other(batches[step % 2][0]), labels[step % 2]).backward()
        optimizer.step()
    expected = F.cross_entropy(other(torch.cat([x for x, _ in batches])), torch.cat(labels)).item()
    assert found == pytest.approx(expected, rel=1e-10)
    assert trainability(model, batches, steps=200, lr=0.1) < trainability(model, batches, steps=0)
    with_dropout = network()
    first = trainability(with_dropout, batches)
    torch.manual_seed(99)  # whatever was drawn before
    assert trainability(with_dropout, batches) == first


# The copy that trainability trains.


class Recorder:
    """A hook that cannot be copied: it keeps outputs that belong to a graph, as a user's recorder does."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args[1:])

    def method(self, *args):
        self.calls.append(args[1:])


def without_dropout():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: r.method, partial, lambda r: lambda *args: r(args)])
def test_trainability_calls_no_hooks_of_the_user(wrap):
    model, batches = without_dropout(), data()
    expected = trainability(model, batches, steps=5)
    recorder = Recorder()
    hook = wrap(recorder)
    model[0].register_forward_hook(hook)
    model[0].register_forward_hook(hook, always_call=True, with_kwargs=True)
    model[1].register_forward_pre_hook(hook)
    model[2].register_forward_pre_hook(hook, with_kwargs=True)
    model[2].register_full_backward_hook(hook)
    model[2].register_full_backward_pre_hook(hook)
    model[0].weight.register_hook(hook)
    model[0].bias.register_post_accumulate_grad_hook(hook)
    model(batches[0][0]).sum().backward()
    called, tables = len(recorder.calls), [dict(m._forward_hooks) for m in model.modules()]
    assert called == 8
    assert trainability(model, batches, steps=5) == expected
    assert len(recorder.calls) == called
    assert [dict(m._forward_hooks) for m in model.modules()] == tables
    model(batches[0][0]).sum().backward()
    assert len(recorder.calls) == 2 * called


class Probe(nn.Module):
    """A head that is both a part of the model and a hook on another part."""

    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Linear(3, 3), 0

    def forward(self, x, args=None, output=None):
        if isinstance(x, nn.Module):  # called as a hook
            self.calls += 1
            return None
        return self.head(x)


def test_a_submodule_that_is_a_hook_as_well_is_copied():
    """Were it shared with the copy, training the copy would change the model."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), Probe()).double()
    model[0].register_forward_hook(model[2])
    before = copy.deepcopy(model.state_dict())
    assert trainability(model, data(), steps=30) < trainability(model, data(), steps=0)
    assert_same(model.state_dict(), before, 0)
    assert model[2].calls == 0


class Halving(prune.BasePruningMethod):
    """A user's own way to prune: its hook is part of the model."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


OLD_STYLE = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "own_prune": lambda layer: Halving.apply(layer, "weight") and layer,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", OLD_STYLE)
def test_trainability_keeps_the_hooks_that_make_up_the_model(name):
    """By hand, on the same model built twice. After a forward pass its weight is no leaf, which deepcopy refuses."""

    def build():
        torch.manual_seed(3)
        model = without_dropout()
        OLD_STYLE[name](model[0])
        return model

    model, batches = build(), data()
    model.train()(batches[0][0]).sum().backward()
    state = copy.deepcopy(model.state_dict())
    found = trainability(model, batches, steps=6, lr=0.1, generator=torch.Generator().manual_seed(4))
    assert_same(model.state_dict(), state, 0)

    draw = torch.Generator().manual_seed(4)
    labels = [torch.randint(3, (len(x),), generator=draw) for x, _ in batches]
    other = build()
    other.load_state_dict(state)
    other.train()
    optimizer = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9)
    for step in range(6):
        optimizer.zero_grad()
        F.cross_entropy(other(batches[step % 2][0]), labels[step % 2]).backward()
        optimizer.step()
    expected = F.cross_entropy(other.eval()(torch.cat([x for x, _ in batches])), torch.cat(labels)).item()
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("steps", [1, 7])
def test_a_copy_that_diverges_is_told_from_a_network_that_did(steps):
    model, batches = network(), data()
    with pytest.raises(
        FloatingPointError, match=r"copy diverged: its loss is .* after \d steps; use a lower lr than 1e\+200"
    ):
        trainability(model, batches, steps=steps, lr=1e200)
    model[4].bias.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"parameter '4.bias' has values that are not finite"):
        trainability(model, batches, steps=steps, lr=1e200)
    with pytest.raises(FloatingPointError, match="loss on random labels is inf before the first step"):
        trainability(network(), batches, steps=steps, forward=lambda m, b: m(b[0]) + torch.tensor([0, -torch.inf, 0]))


PROBES = {
    "unit_activity": unit_activity,
    "dormant_units": dormant_units,
    "dead_units": dead_units,
    "features": features,
    "gradient_norm": gradient_norm,
    "mean_weight": lambda model, batches, **_: mean_weight(model),
    "trainability": trainability,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PROBES)
def test_law_3_probes_change_nothing(name, training):
    model, batches = network().train(training), data()
    model(batches[0][0]).sum().backward()
    waiting = model(batches[1][0]).sum()  # a graph that is still to be used
    versions = [(p, p._version) for p in model.parameters()]
    state, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    PROBES[name](model, batches)
    assert_same(model.state_dict(), state, 0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(p._version == version for p, version in versions)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training is training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    waiting.backward()


# What diverged, and what is empty.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", ["0.weight", "4.bias"])
@pytest.mark.parametrize("name", PROBES)
def test_law_11_a_weight_that_is_not_finite_is_a_blow_up(name, weight, value):
    """Also in the last layer, behind all the units and features."""
    model = network()
    model.get_parameter(weight).data.view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match=f"parameter '{weight}' has values that are not finite"):
        PROBES[name](model, data())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in PROBES if name != "mean_weight"])
def test_law_11_an_output_that_is_not_finite_is_a_blow_up(name, value):
    """Of a single sample, in the second batch, with finite weights."""
    model, batches = network(), data()

    def run(m, batch):
        factor = torch.ones(len(batch[0]), 1, dtype=torch.float64)
        factor[-1] = value if len(batch[0]) == 5 else 1.0
        return m(batch[0]) * factor

    with pytest.raises(FloatingPointError, match=r"not finite|is (nan|inf)"):
        PROBES[name](model, batches, forward=run)


@pytest.mark.parametrize("name", ["unit_activity", "dormant_units", "dead_units", "features", "trainability"])
def test_law_11_values_inside_that_are_not_finite_are_a_blow_up(name):
    """The weights are finite, and so is the output: tanh hides what overflows; a mean would have hidden NaN."""
    inside = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Tanh(), nn.Linear(6, 3)).double()
    inside[0].weight.data.fill_(1e308)
    x = torch.full((3, 4), 1e3, dtype=torch.float64)
    if name in ("features", "trainability"):
        inside = nn.Sequential(inside[0], inside[3]).double()
    with pytest.raises(FloatingPointError, match="not finite"):
        PROBES[name](inside, [x])
    if name == "features":  # forward= may hide what the last layer gives
        with pytest.raises(FloatingPointError, match="the feature matrix has values that are not finite"):
            features(inside, [x], forward=lambda m, batch: m(batch).nan_to_num())


def test_law_11_a_gradient_or_loss_that_is_not_finite_is_a_blow_up():
    model, batches = network(), data()
    with pytest.raises(FloatingPointError, match=r"^the loss has values that are not finite"):
        gradient_norm(model, batches, loss=lambda output, y: output.sum() * math.nan)
    with pytest.raises(FloatingPointError, match="the gradient of the loss has values that are not finite"):
        gradient_norm(model, batches, loss=lambda output, y: (output[0, 0] - output[0, 0].detach()).sqrt())


def test_masked_classes_are_no_blow_up():
    """Fisher importance takes -inf for a class that cannot be; so do the probes whose result is finite."""
    model, batches = network(), data()
    mask = torch.tensor([0, 0, -math.inf])

    def run(m, batch):
        return m(batch[0]) + mask

    batches = [(x, y.clamp(max=1)) for x, y in batches]
    expected = gradient_norm(model, batches, forward=lambda m, b: m(b[0])[:, :2])
    assert gradient_norm(model, batches, forward=run) == pytest.approx(expected, rel=1e-12)
    assert unit_activity(model, batches, forward=run).keys() == {"2"}
    assert torch.equal(features(model, batches, forward=run), features(model, batches))


def empty():
    return (torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.long))


def plain(found):
    """Turn whatever a probe gives into plain numbers."""
    if isinstance(found, dict):
        return {name: plain(value) for name, value in found.items()}
    if isinstance(found, tuple):
        return [plain(value) for value in found]
    return found.tolist() if isinstance(found, torch.Tensor) else found


@pytest.mark.parametrize("name", PROBES)
def test_law_2_batches_without_samples_do_not_matter(name):
    model, (first, second) = network(), data()

    def run(m, batch):
        assert len(batch[0]), "some models cannot take a batch without samples"
        return m(batch[0])

    expected = plain(PROBES[name](model, [first, second]))
    for batches in ([empty(), first, second], [first, empty(), second, empty()]):
        assert plain(PROBES[name](model, batches, forward=run)) == expected


@pytest.mark.parametrize("batches", [[], [empty()], [empty(), empty()], [[]]], ids=["none", "one", "two", "no tensor"])
@pytest.mark.parametrize("name", [name for name in PROBES if name != "mean_weight"])
def test_no_sample_at_all_is_one_clear_error(name, batches):
    with pytest.raises(ValueError, match="batches gave no sample; give"):
        PROBES[name](network(), batches)


def test_batches_without_tensors_are_left_to_forward():
    words = ["one", "three"]
    found = unit_activity(
        network(), [words], forward=lambda m, b: m(torch.tensor([[float(len(w))] * 4 for w in b]).double())
    )
    assert found.keys() == {"2"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: unit_activity(nn.Linear(4, 2).double(), b), "saw no elementwise activation function"),
        (lambda m, b: dormant_units(m, b, threshold=-1.0), "threshold is -1.0; give a number of at least 0"),
        (lambda m, b: features(m, []), "batches gave no sample"),
        (lambda m, b: features(nn.ReLU(), b), "found no last layer"),
        (lambda m, b: effective_rank(torch.ones(3)), r"the rank is that of a matrix; got shape \(3,\)"),
        (lambda m, b: mean_weight(nn.ReLU()), "no parameter that requires a gradient"),
        (lambda m, b: gradient_norm(m, []), "batches gave no sample"),
        (lambda m, b: gradient_norm(m, [b[0][0]]), "needs batches of"),
        (lambda m, b: trainability(m, b, steps=-1), "steps is -1"),
        (lambda m, b: trainability(m, []), "batches gave no sample"),
    ],
)
def test_wrong_use_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(network(), data())
