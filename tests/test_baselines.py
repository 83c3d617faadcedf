"""Avalanche's methods as they are wrapped here: mended, and working in every scenario that they know."""

import itertools

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from mas.benchmarks import split
from mas.strategies import STRATEGIES, DERpp, GEMPlugin, LwF, LwFPlugin
from tests.building import built_mlp

BASELINES = ["cumulative", "lwf", "replay", "gem", "agem", "der++"]


def build(name, benchmark, **options):
    model = built_mlp(benchmark, 16)
    return STRATEGIES[name](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=32,
        train_epochs=1,
        eval_mb_size=256,
        evaluator=EvaluationPlugin(),
        **options,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains_and_tests(name, scenario):
    benchmark = split("digits", experiences=3, scenario=scenario)
    if name == "der++" and scenario == "task":
        with pytest.raises(ValueError, match="without task labels; use the scenario domain or class"):
            build(name, benchmark)
        return
    strategy = build(name, benchmark)
    before = [p.detach().clone() for p in strategy.model.parameters()]
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    after = list(strategy.model.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gem_gives_the_nearest_gradient_that_hurts_no_memory(margin):
    """Against every choice of active constraints, solved by hand."""
    draw = np.random.default_rng(0)
    plugin = GEMPlugin(10, margin)
    plugin.G = torch.tensor(draw.normal(size=(3, 8)))
    for _ in range(20):
        g = torch.tensor(draw.normal(size=8))
        p = (plugin.G @ plugin.G.T).numpy() + 1e-3 * np.eye(3)
        linear = (plugin.G @ g).numpy()
        best = min(
            (0.5 * v @ p @ v + linear @ v, tuple(v))
            for v in candidates(p, linear, margin)
            if (v >= margin - 1e-12).all()
        )
        expected = np.array(best[1]) @ plugin.G.numpy() + g.numpy()
        assert np.allclose(plugin.solve_quadprog(g).numpy(), expected, atol=1e-8)


def candidates(p, linear, margin):
    for choice in itertools.product([False, True], repeat=3):
        v, free = np.full(3, margin), np.array(choice)
        if free.any():
            v[free] = np.linalg.solve(p[np.ix_(free, free)], -linear[free] - p[np.ix_(free, ~free)] @ v[~free])
        yield v


def test_the_teacher_of_lwf_stands_still():
    benchmark = split("digits", experiences=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
    strategy = LwF(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_mb_size=32,
                   evaluator=EvaluationPlugin())  # fmt: skip
    strategy.train(benchmark.train_stream[0])
    (plugin,) = [p for p in strategy.plugins if isinstance(p, LwFPlugin)]
    teacher = plugin.lwf.prev_model
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    strategy.train(benchmark.train_stream[1])
    assert plugin.lwf.prev_model is not teacher
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())


def test_lwf_distils():
    benchmark = split("digits", experiences=2)
    weights = []
    for alpha in (0.0, 10.0):
        torch.manual_seed(0)
        strategy = build("lwf", benchmark, alpha=alpha)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        weights.append(next(strategy.model.parameters()).detach().clone())
    assert not torch.equal(*weights)


def test_der_takes_the_options_that_it_names():
    strategy = build("der++", split("digits", experiences=2), mem_size=50, alpha=0.3, beta=0.7, batch_size_mem=8)
    assert isinstance(strategy, DERpp)
    assert (strategy.mem_size, strategy.alpha, strategy.beta, strategy.batch_size_mem) == (50, 0.3, 0.7, 8)
