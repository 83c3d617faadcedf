"""SI and RWalk in a plain PyTorch loop, against their papers written out."""

import copy

import pytest
import torch
from torch import nn

from mas import PathIntegral, QuadraticPenalty, RiemannianWalk, fisher_importance
from tests.conftest import assert_same
from tests.oracles.path import rwalk_by_loop, si_by_loop


def problem(lengths=(7, 4, 5)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    draw = lambda: (torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,)))  # noqa: E731
    return model, [[draw() for _ in range(length)] for length in lengths]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, lambda p, lr: torch.optim.SGD(p, lr, foreach=False)])
def test_si_is_zenke_written_out(optimizer):
    model, tasks = problem()
    reference = copy.deepcopy(model)
    expected = si_by_loop(reference, tasks, lam=2.0, damping=0.01, lr=0.1)
    penalty, path = QuadraticPenalty(2.0), PathIntegral(model, damping=0.01)
    step = optimizer(model.parameters(), lr=0.1)
    for task in tasks:
        path.start()
        for x, y in task:
            step.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            path.before_step()
            penalty.add_gradient_(model)
            step.step()
            path.after_step()
        penalty.consolidate(model, path.importance())
    assert_same(penalty.importance, expected)
    assert_same(weights(model), weights(reference))
    assert all(t.any() for t in expected.values())


@pytest.mark.parametrize("interval", [1, 3, 100])
def test_rwalk_is_chaudhry_written_out(interval):
    model, tasks = problem()
    reference = copy.deepcopy(model)
    expected = rwalk_by_loop(reference, tasks, 2.0, alpha=0.7, interval=interval, damping=0.01, lr=0.1)
    penalty, walk = QuadraticPenalty(2.0, "ema", 0.0), RiemannianWalk(model, alpha=0.7, damping=0.01)
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    for task in tasks:
        walk.start()
        for i, (x, y) in enumerate(task, 1):
            step.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            walk.before_step()
            penalty.add_gradient_(model)
            step.step()
            walk.after_step()
            if walk.steps == interval or i == len(task):
                walk.close_interval(fisher_importance(model, [(x, y)], labels="empirical"))
        penalty.consolidate(model, walk.importance())
    assert_same(penalty.importance, expected)
    assert_same(weights(model), weights(reference))
    assert max(float(t.max()) for t in expected.values()) <= 2.0


def test_the_path_adds_up_to_the_fall_of_the_loss():
    """For steps that go to zero, Σ_i ω_i is the loss before minus the loss after."""
    model, ((batch, *_), *_) = problem()
    x, y = batch
    path, step = PathIntegral(model), torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(200):
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        step.zero_grad()
        loss.backward()
        path.before_step()
        step.step()
        path.after_step()
    earned = sum(float(t.sum()) for t in path.gain.values())
    assert earned == pytest.approx(losses[0] - nn.functional.cross_entropy(model(x), y).item(), rel=1e-3)


def test_a_parameter_without_a_gradient_earns_nothing():
    model, _ = problem()
    path = PathIntegral(model)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    path.before_step()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.5)
    path.after_step()
    found = path.importance()
    assert found["0.weight"].min() > 0
    assert not found["2.weight"].any()


def test_rwalk_keeps_what_it_knows_of_a_parameter_that_a_task_does_not_use():
    model, _ = problem()
    walk = RiemannianWalk(model)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for used in (True, False):
        walk.start()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        model[2].weight.grad = torch.ones_like(model[2].weight) if used else None
        walk.before_step()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1)
        walk.after_step()
        walk.close_interval(ones if used else ones | {"2.weight": torch.zeros_like(ones["2.weight"])})
        found = walk.importance()
        assert bool(found["2.weight"].any()) is used
    assert torch.equal(walk.fisher["2.weight"], ones["2.weight"])


def test_a_grown_parameter_keeps_its_past():
    model, _ = problem()
    walk = RiemannianWalk(model)
    walk.fisher = {"2.weight": torch.full((2, 6), 4.0, dtype=torch.float64)}
    walk.start()
    walk.close_interval({name: torch.ones_like(p) for name, p in model.named_parameters()})
    assert torch.allclose(walk.fisher["2.weight"][:2], torch.tensor(1.3, dtype=torch.float64))
    assert torch.equal(walk.fisher["2.weight"][2], torch.ones(6, dtype=torch.float64))


def test_wrong_use_is_one_clear_error():
    model, _ = problem()
    with pytest.raises(RuntimeError, match="after_step without before_step"):
        PathIntegral(model).after_step()
    with pytest.raises(ValueError, match="damping is 0"):
        PathIntegral(model, damping=0)
    with pytest.raises(ValueError, match="alpha is 2"):
        RiemannianWalk(model, alpha=2)


def test_rwalk_skips_parameters_without_fisher_information():
    model = nn.Linear(2, 1)
    walk = RiemannianWalk(model)
    walk.start()
    walk.close_interval({"bias": torch.ones(1)})
    assert set(walk.importance()) == {"bias"}


def test_si_a_path_uphill_earns_no_importance():
    model = nn.Linear(2, 1, bias=False)
    path = PathIntegral(model, damping=1.0)
    model.weight.grad = torch.tensor([[4.0, 4.0]])
    path.before_step()
    with torch.no_grad():
        model.weight += torch.tensor([[1.0, -1.0]])  # the first weight goes up the gradient
    path.after_step()
    assert path.importance()["weight"].tolist() == [[0.0, pytest.approx(2.0)]]
