"""Avalanche's methods as they are wrapped here: mended, and working in every scenario that they know."""

import itertools

import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from mas.benchmarks import split
from mas.strategies import STRATEGIES, DERpp, FromScratch, GEMPlugin, LwF, LwFPlugin, Naive
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


def network(outputs=5):
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


def trained(strategy, model, experiences, *, momentum=0.9, **options):
    """Return the state of a network that learned experiences; the global random stream begins anew with each."""
    made = strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum),
        train_mb_size=32,
        evaluator=EvaluationPlugin(),
    )
    for experience in experiences:
        torch.manual_seed(5)
        made.train(experience, **options)
    return {name: value.detach().clone() for name, value in made.model.state_dict().items()}


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_from_scratch_is_naive_in_the_first_experience():
    first = split("digits", experiences=2).train_stream[0]
    assert_same_state(trained(FromScratch, network(), [first]), trained(Naive, network(), [first]))


@pytest.mark.parametrize("reset", [False, True])
def test_from_scratch_learns_each_experience_as_if_it_were_the_first(reset):
    """Weights, BatchNorm's statistics, and an optimizer with momentum that Avalanche is not told to reset."""
    first, second = split("digits", experiences=2).train_stream
    alone = trained(FromScratch, network(), [second])
    after_another = trained(FromScratch, network(), [first, second], reset_optimizer_state=reset)
    assert_same_state(after_another, alone)
    assert not torch.equal(trained(Naive, network(), [first, second])["1.weight"], alone["1.weight"])


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_from_scratch_sets_heads_back(scenario):
    """Heads of tasks, and a head that grows: what the second experience does not train is as it was at first."""
    first, second = split("digits", experiences=2, scenario=scenario, class_order="fixed").train_stream
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    heads = MultiHeadClassifier(8, masking=False)
    own = WithHeads(layers, heads) if scenario == "task" else WithHead(layers, IncrementalClassifier(8))
    body = {name: value.clone() for name, value in own.body.state_dict().items()}
    seen = []

    class Look(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            seen.append({name: value.clone() for name, value in strategy.model.state_dict().items()})

    made = FromScratch(
        own, torch.optim.SGD(own.parameters(), lr=0.1), plugins=[Look()], train_mb_size=32, evaluator=EvaluationPlugin()
    )
    made.train(first)
    made.train(second)
    start, again = seen
    assert all(torch.equal(again[f"body.{name}"], value) for name, value in body.items())
    for name, value in start.items():
        if name.endswith(("weight", "bias")):
            assert torch.equal(again[name][: len(value)], value), name
    assert again.keys() >= start.keys()


class WithHead(nn.Module):
    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x):
        return self.head(self.body(x))


class WithHeads(MultiTaskModule):
    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x, task_labels):
        return self.head(self.body(x), task_labels)
