"""Plasticity probes against hooks, loops and hand-written training."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

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


def test_dormant_and_dead_units():
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data.copy_(torch.tensor([[3.0], [-1.0], [0.9], [0.06]]))  # mean |h| of x = 1: 3, 0, 0.9, 0.06
    assert dead_units(model, [torch.ones(2, 1)]) == {"1": 0.25}
    assert dead_units(model, [torch.tensor([[1.0], [-1.0]])]) == {"1": 0.0}
    mean = 3.96 / 4
    for threshold in (0.0, 0.05, 0.07, 1.0):
        expected = sum(h <= threshold * mean for h in (3, 0, 0.9, 0.06)) / 4
        assert dormant_units(model, [torch.ones(2, 1)], threshold) == {"1": expected}


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
    squared = gradient_norm(model, [(x, torch.ones(17, 3).double())], nn.MSELoss())
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


PROBES = {
    "unit_activity": unit_activity,
    "dormant_units": dormant_units,
    "dead_units": dead_units,
    "features": features,
    "gradient_norm": gradient_norm,
    "mean_weight": lambda model, batches: mean_weight(model),
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: unit_activity(nn.Linear(4, 2).double(), b), "saw no elementwise activation function"),
        (lambda m, b: unit_activity(m, []), "saw no elementwise activation function"),
        (lambda m, b: dormant_units(m, b, -1.0), "threshold is -1.0; give a number of at least 0"),
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
