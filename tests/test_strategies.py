"""The strategy layer on Avalanche: laws 3, 4, 7 and 10, the logged loss, and others' code beside ours."""

import copy
import importlib.util
import inspect
import sys
import warnings
from collections import UserDict
from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import DataAttribute, make_avalanche_dataset
from avalanche.evaluation.metrics import loss_metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP, MultiHeadClassifier, SimpleMLP
from avalanche.training import Naive as AvalancheNaive
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.plugins import EWCPlugin as AvalancheEWC
from avalanche.training.plugins import MASPlugin as AvalancheMAS
from avalanche.training.supervised import ICaRL
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils.data import Dataset, TensorDataset, default_collate

import mas
from mas.experiments.networks import MultiHead
from mas.strategies import (
    EWC,
    L2,
    MAS,
    PROBES,
    SI,
    STRATEGIES,
    EWCPlugin,
    Joint,
    MASPlugin,
    Naive,
    OnlineEWCPlugin,
    ProbePlugin,
    Random,
    RWalkPlugin,
    Schedule,
    SIPlugin,
)
from tests.conftest import assert_same
from tests.oracles.path import si_by_loop
from tools import strategy_stub

REGULARISED = {
    name: strategy for name, strategy in STRATEGIES.items() if "lam" in inspect.signature(strategy).parameters
}


def benchmark(task_labels=False, classes=6, experiences=3):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(10 * classes, 5, generator=draw), torch.arange(classes).repeat(10)
    x += torch.nn.functional.one_hot(y, 5 if classes <= 5 else classes)[:, :5]
    data = TensorDataset(x, y)
    return nc_benchmark(
        data, data, experiences, task_labels=task_labels, shuffle=False, class_ids_from_zero_in_each_exp=task_labels
    )


def network(outputs=6):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, outputs))


def build(strategy, model, plugins=(), evaluator=None, **options):
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        eval_mb_size=16,
        plugins=list(plugins),
        evaluator=evaluator or EvaluationPlugin(),
        **options,
    )


def train(strategy, stream, **options):
    torch.manual_seed(2)
    for experience in stream:
        strategy.train(experience, **options)
    return [p.detach().clone() for p in strategy.model.state_dict().values()]


@pytest.mark.parametrize("name", REGULARISED)
class TestEveryRegularisedStrategy:
    def test_law_4_lambda_zero_is_naive_bit_for_bit(self, name):
        naive = train(build(Naive, network()), benchmark().train_stream)
        ours = train(build(REGULARISED[name], network(), lam=0.0), benchmark().train_stream)
        assert all(torch.equal(a, b) for a, b in zip(naive, ours, strict=True))

    def test_law_4_lambda_changes_the_weights_from_the_second_experience_on(self, name):
        first, *_, last = benchmark().train_stream
        for stream, same in (([first], True), ([first, last], False)):
            naive = train(build(Naive, network()), stream)
            ours = train(build(REGULARISED[name], network(), lam=1.0), stream)
            assert all(torch.equal(a, b) for a, b in zip(naive, ours, strict=True)) is same

    def test_the_logged_loss_includes_the_penalty(self, name):
        seen = []

        class Look(SupervisedPlugin):
            def before_backward(self, strategy, **kwargs):
                self.bare = strategy.loss.item()

            def after_training_iteration(self, strategy, **kwargs):
                seen.append((strategy.loss.item(), self.bare))

        torch.manual_seed(0)
        evaluator = EvaluationPlugin(loss_metrics(minibatch=True))
        strategy = build(REGULARISED[name], network(), [Look()], evaluator, lam=5.0)
        stream = benchmark().train_stream
        strategy.train(stream[0])
        assert all(logged == bare for logged, bare in seen)
        seen.clear()
        before = mas.QuadraticPenalty()
        before.load_state_dict(plugin_of(strategy).penalty.state_dict())
        model_before = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
        metrics = strategy.train(stream[1])
        logged, bare = seen[0]
        assert logged == bare  # at its anchor the penalty is zero
        assert max(logged - bare for logged, bare in seen) > 0
        assert next(v for k, v in metrics.items() if k.startswith("Loss_MB")) == seen[-1][0]
        assert any((model_before[n] != p).any() for n, p in strategy.model.named_parameters())

    def test_beside_avalanches_replay_and_lwf(self, name):
        strategy = build(REGULARISED[name], network(), [ReplayPlugin(20), LwFPlugin(1.0, 2.0)], lam=1.0)
        weights = train(strategy, benchmark().train_stream)
        assert all(torch.isfinite(w).all() for w in weights)

    def test_law_7_multi_head_models_keep_old_heads_importance(self, name):
        torch.manual_seed(1)
        model = MTSimpleMLP(input_size=5, hidden_size=8)
        strategy = build(REGULARISED[name], model, lam=1.0)
        stream = benchmark(task_labels=True).train_stream
        strategy.train(stream[0])
        importance = plugin_of(strategy).penalty.importance
        heads = {n: t.clone() for n, t in importance.items() if "classifiers.0" in n}
        assert any(t.any() for t in heads.values())
        strategy.train(stream[1])
        strategy.train(stream[2])
        importance = plugin_of(strategy).penalty.importance
        assert all(torch.equal(importance[n], t) for n, t in heads.items())
        assert any("classifiers.2" in n for n in importance)

    def test_law_7_a_growing_classifier_is_penalised_only_where_it_was(self, name):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), IncrementalClassifier(8, 2))
        strategy = build(REGULARISED[name], model, lam=1.0)
        train(strategy, benchmark().train_stream)
        assert plugin_of(strategy).penalty.anchor["2.classifier.weight"].shape == (6, 8)

    def test_max_samples_is_a_seeded_draw_from_no_global_stream(self, name):
        if "max_samples" not in inspect.signature(REGULARISED[name]).parameters or name == "random":
            pytest.skip("takes no pass over data, or draws anyway")

        def importance(seed, limit):
            strategy = build(REGULARISED[name], network(), lam=1.0, max_samples=limit)
            plugin_of(strategy).generator.manual_seed(seed)
            weights = train(strategy, benchmark().train_stream[:1])
            return plugin_of(strategy).penalty.importance["0.weight"], weights

        (a, wa), (b, _), (c, wc) = importance(0, 4), importance(0, 4), importance(1, 4)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert all(torch.equal(x, y) for x, y in zip(wa, wc, strict=True))

    def test_the_backbone_only_leaves_the_heads_free(self, name):
        torch.manual_seed(1)
        model = MTSimpleMLP(input_size=5, hidden_size=8)
        strategy = build(REGULARISED[name], model, lam=1.0, parameters="backbone")
        train(strategy, benchmark(task_labels=True).train_stream)
        omega = plugin_of(strategy).penalty.importance
        assert omega["features.0.weight"].any()
        for key, value in omega.items():
            assert key.startswith("features") or not value.any(), key
        with pytest.raises(ValueError, match="parameters is 'head'; known are 'all', 'backbone'"):
            build(REGULARISED[name], network(), parameters="head")

    @pytest.mark.parametrize("sizes", [(2, 2, 2), (60, 60, 60)])
    def test_experiences_of_any_length(self, name, sizes):
        """Of one step, or of many."""
        strategy = build(REGULARISED[name], network(), lam=1.0)
        strategy.train_epochs = 1
        strategy.train_mb_size = sizes[0]
        weights = train(strategy, benchmark().train_stream)
        omega = plugin_of(strategy).penalty.importance
        assert all(torch.isfinite(w).all() for w in [*weights, *omega.values()])
        assert all(omega[key].any() for key in ("0.weight", "4.weight"))

    def test_with_periodic_evaluation_and_in_an_online_stream(self, name):
        stream = benchmark()
        strategy = build(REGULARISED[name], network(), lam=1.0, eval_every=1)
        strategy.train(stream.train_stream[0], eval_streams=[stream.test_stream])
        for part in split_online_stream(stream.train_stream, 8):
            strategy.train(part)
        assert all(torch.isfinite(w).all() for w in plugin_of(strategy).penalty.importance.values())

    def test_a_copy_of_the_model_in_its_place_is_followed(self, name):
        strategy, stream = build(REGULARISED[name], network(), lam=1.0), benchmark().train_stream
        strategy.train(stream[0])
        strategy.model = copy.deepcopy(strategy.model)
        strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.05, momentum=0.9)
        strategy.train(stream[1])
        plugin = plugin_of(strategy)
        if plugin.penalty.accumulate != "quadratics":  # whose anchor is a mean
            assert_same(plugin.penalty.anchor, {n: p.detach() for n, p in strategy.model.named_parameters()})
        follower = getattr(plugin, "walk", None) or plugin
        if path := getattr(follower, "path", None):
            assert all(p is path.params[n] for n, p in strategy.model.named_parameters())

    def test_importance_of_other_data_unlabelled_or_held_out(self, name):
        strategy_of = REGULARISED[name]
        if "data" not in inspect.signature(strategy_of).parameters:
            pytest.skip("gathers importance while training, or needs no data")
        torch.manual_seed(3)
        samples = [torch.randn(9, 5) for _ in range(3)]
        labels = torch.randint(6, (9,))
        whole = [TensorDataset(x, labels) for x in samples]
        options = {"data": lambda experience: whole[experience.current_experience]}
        strategy = build(strategy_of, network(), lam=1.0, **options)
        strategy.train(benchmark().train_stream[0])
        plugin = plugin_of(strategy)
        plugin.generator.manual_seed(0)
        expected = plugin.measure(strategy.model, [(samples[0], labels)])
        if name != "random":
            assert all(torch.allclose(plugin.penalty.importance[n], t, rtol=1e-5) for n, t in expected.items())
        bare = build(strategy_of, network(), lam=1.0, data=TensorDataset(samples[0]))
        bare.train(benchmark().train_stream[0])
        assert all(torch.equal(plugin_of(bare).penalty.importance[n], t) for n, t in plugin.penalty.importance.items())

    @pytest.mark.parametrize("data", ["test", "both"])
    @pytest.mark.parametrize("ours", [True, False])
    def test_importance_of_test_data_of_the_same_experience(self, name, data, ours):
        if "data" not in inspect.signature(REGULARISED[name]).parameters or name == "random":
            pytest.skip("gathers importance while training, or draws it")
        draw = torch.Generator().manual_seed(5)
        train_data, test_data = (
            TensorDataset(torch.randn(n, 5, generator=draw), torch.arange(n) % 6) for n in (30, 18)
        )
        stream = nc_benchmark(train_data, test_data, 3, task_labels=False, shuffle=False)
        if ours:
            parts = [[experience.dataset for experience in s] for s in (stream.train_stream, stream.test_stream)]
            stream = benchmark_from_datasets(train=parts[0], test=parts[1])
            for part in stream.streams.values():
                part.benchmark = stream
        strategy = build(REGULARISED[name], network(), lam=1.0, data=data)
        strategy.train(stream.train_stream[0])
        plugin = plugin_of(strategy)
        plugin.penalty = mas.QuadraticPenalty(1.0)
        strategy.train(stream.train_stream[1])
        sets = [stream.train_stream[1].dataset] * (data == "both") + [stream.test_stream[1].dataset]
        samples = [torch.stack([x for part in sets for x, *_ in part])]
        assert len(samples[0]) == (16 if data == "both" else 6)
        expected = plugin.measure(strategy.model, samples)
        assert all(torch.allclose(plugin.penalty.importance[n], t, rtol=1e-4) for n, t in expected.items())

    def test_adaptation_to_data_met_at_test_time(self, name):
        strategy = build(REGULARISED[name], network(), lam=1.0)
        strategy.train(benchmark().train_stream[0])
        plugin, met = plugin_of(strategy), TensorDataset(torch.randn(9, 5))
        before = {n: t.clone() for n, t in plugin.penalty.importance.items()}
        if plugin.gathers:
            with pytest.raises(TypeError, match=f"{type(plugin).__name__} gathers importance while training"):
                plugin.adapt(strategy, met)
            return
        anchor = {n: t.clone() for n, t in plugin.penalty.anchor.items()}
        plugin.adapt(strategy, met)
        assert all(torch.equal(plugin.penalty.anchor[n], t) for n, t in anchor.items())
        if name in ("mas", "local_mas"):
            added = plugin.measure(strategy.model, [met.tensors[0]])
            after = plugin.penalty.importance
            assert all(torch.allclose(after[n], before[n] + t, rtol=1e-5) for n, t in added.items())


def plugin_of(strategy):
    return next(p for p in strategy.plugins if isinstance(p, mas.strategies.ImportancePlugin))


@pytest.mark.parametrize("name", REGULARISED)
def test_plugins_work_in_avalanches_own_naive(name):
    strategy = build(REGULARISED[name], network(), lam=1.0)
    ours = train(strategy, benchmark().train_stream)
    own = train(build(AvalancheNaive, network(), [type(plugin_of(strategy))(lam=1.0)]), benchmark().train_stream)
    assert all(torch.equal(a, b) for a, b in zip(own, ours, strict=True))


# `reduction: batch` gives the numbers of Avalanche. Its penalties have no ½, and it measures MAS in train mode.
PEERS = {
    "mas": (
        AvalancheMAS(lambda_reg=0.5, alpha=0.3),
        MASPlugin(0.5, accumulate="ema", factor=0.3, reduction="batch"),
        lambda plugin: {n: d.data for n, d in plugin.importance.items()},
    ),
    "ewc_online": (
        AvalancheEWC(ewc_lambda=20.0, mode="online", decay_factor=0.6),
        EWCPlugin(40.0, "empirical", mode="online", decay=0.6, reduction="batch"),
        lambda plugin: {n: d.data for n, d in plugin.importances[2].items()},
    ),
    "ewc_separate": (
        AvalancheEWC(ewc_lambda=20.0, mode="separate"),
        EWCPlugin(40.0, "empirical", reduction="batch"),
        lambda plugin: {n: sum(plugin.importances[k][n].data for k in range(3)) for n in plugin.importances[0]},
    ),
}


@pytest.mark.parametrize("peer", PEERS)
def test_reduction_batch_gives_avalanches_numbers(peer):
    theirs, ours, importance = (copy.deepcopy(part) for part in PEERS[peer])
    start = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6))
    models = [copy.deepcopy(start) for _ in range(3)]
    for model, plugins in zip(models, ([theirs], [ours], []), strict=True):
        # Avalanche's pass draws from the global stream, and so would shuffle the next experience in another way
        train(build(AvalancheNaive, model, plugins), benchmark().train_stream, shuffle=False)
    for name, omega in importance(theirs).items():
        assert omega.max() > 0
        assert torch.allclose(ours.penalty.importance[name], omega, rtol=1e-3, atol=1e-7), name
    for own, other, naive in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(own, other, rtol=1e-3, atol=1e-5)
        assert (own - naive).abs().max() > 1e-3  # the penalty mattered


def test_si_as_a_strategy_is_zenke_written_out():
    x, y = torch.randn(24, 5, dtype=torch.float64), torch.arange(24) % 6
    data = TensorDataset(x, y)
    stream = nc_benchmark(data, data, 3, task_labels=False, shuffle=False).train_stream
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    reference = copy.deepcopy(model)
    tasks = [[(e.dataset[i][0][None], torch.tensor([e.dataset[i][1]])) for i in range(8)] for e in stream]
    expected = si_by_loop(reference, tasks, lam=3.0, damping=0.02, lr=0.1)
    strategy = SI(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=1,
        evaluator=EvaluationPlugin(),
        lam=3.0,
        damping=0.02,
    )
    for experience in stream:
        strategy.train(experience, shuffle=False)
    assert_same(plugin_of(strategy).penalty.importance, expected)
    assert_same(dict(model.named_parameters()), dict(reference.named_parameters()))


def test_controls_replace_or_add_up_as_they_say():
    strategy = build(L2, network(), lam=1.0)
    train(strategy, benchmark().train_stream)
    assert all((omega == 1).all() for omega in plugin_of(strategy).penalty.importance.values())
    strategy = build(Random, network(), lam=1.0)
    train(strategy, benchmark().train_stream)
    assert plugin_of(strategy).penalty.importance["0.weight"].mean() == pytest.approx(1.5, abs=0.3)


def test_a_plugin_added_in_the_middle_of_an_experience_is_one_clear_error():
    for plugin in (SIPlugin(), RWalkPlugin()):
        with pytest.raises(RuntimeError, match="before the experience began"):
            plugin.after_backward(None)
    with pytest.raises(ValueError, match="interval is 0"):
        RWalkPlugin(interval=0)


def test_help_shows_all_options_of_a_plugin():
    common = ["parameters", "data", "max_samples"]
    assert list(inspect.signature(MASPlugin).parameters) == [
        "lam",
        "norm",
        "accumulate",
        "factor",
        "reduction",
        *common,
    ]
    with pytest.raises(TypeError, match="samples"):
        MASPlugin(samples=3)


@pytest.mark.parametrize("name", STRATEGIES)
class TestArguments:
    def test_model_optimizer_and_criterion_by_position_are_those_by_name(self, name):
        def made(by_position):
            model = network()
            first = (model, torch.optim.SGD(model.parameters(), lr=0.05), nn.CrossEntropyLoss(label_smoothing=0.3))
            named = {} if by_position else dict(zip(("model", "optimizer", "criterion"), first, strict=True))
            common = {"train_mb_size": 8, "evaluator": EvaluationPlugin()}
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                return STRATEGIES[name](*(first if by_position else ()), **named, **common)

        def trained(strategy):
            torch.manual_seed(2)
            strategy.train(benchmark(experiences=1).train_stream[0])
            return list(strategy.model.parameters())

        by_name, by_position = made(by_position=False), made(by_position=True)
        assert by_position._criterion.label_smoothing == 0.3
        assert all(torch.equal(a, b) for a, b in zip(trained(by_name), trained(by_position), strict=True))

    def test_what_follows_must_be_given_by_name(self, name):
        """The fourth argument of Avalanche's own EWC is a strength, that of its Naive a batch size."""
        kind, model = STRATEGIES[name], network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        expected = f"{kind.__name__} got 4 arguments by position; allowed: model, optimizer, criterion;"
        with pytest.raises(TypeError, match=expected):
            kind(model, optimizer, nn.CrossEntropyLoss(), 32)
        with pytest.raises(TypeError, match=f"{kind.__name__} got model by position and by name; give it once"):
            kind(model, model=model, optimizer=optimizer)

    def test_the_signature_has_avalanches_arguments_first(self, name):
        theirs = list(inspect.signature(SupervisedTemplate).parameters)
        shown = list(inspect.signature(STRATEGIES[name]).parameters)
        assert shown[: len(theirs) - 1] == theirs[:-1]  # the last one is **kwargs
        assert shown[-1] == theirs[-1]
        assert len(set(shown)) == len(shown)


def test_the_stub_spells_out_the_arguments_of_every_strategy():
    """Editors and type checkers read it; `python -m tools.strategy_stub` writes it."""
    assert strategy_stub.STUB.read_text(encoding="utf-8") == strategy_stub.stub()


def test_a_subclass_shows_and_takes_the_same_arguments():
    class Mine(MAS):
        pass

    assert inspect.signature(Mine) == inspect.signature(MAS)
    evaluator = EvaluationPlugin()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert plugin_of(build(Mine, network(), evaluator=evaluator, lam=3.0)).penalty.strength == 3


def test_the_plugin_measures_exactly_the_experiences_data():
    strategy = build(MAS, network(), [ReplayPlugin(20)], lam=1.0)
    stream = benchmark().train_stream
    strategy.train(stream[0])
    first = {n: t.clone() for n, t in plugin_of(strategy).penalty.importance.items()}
    strategy.train(stream[1])
    data = stream[1].dataset.eval()
    x = torch.stack([data[i][0] for i in range(len(data))])
    expected = mas.mas_importance(strategy.model, [x])
    for name, total in plugin_of(strategy).penalty.importance.items():
        assert torch.allclose(total, first[name] + expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "rule"), [("separate", "quadratics"), ("online", "decay")])
def test_ewc_is_half_lambda_times_the_fisher_quadratic(mode, rule):
    penalty = EWCPlugin(3.0, mode=mode, decay=0.4).penalty
    assert (penalty.strength, penalty.accumulate, penalty.factor) == (1.5, rule, 0.4)


def test_online_ewc_is_ewc_that_decays():
    penalty = OnlineEWCPlugin(3.0, decay=0.4).penalty
    assert (penalty.strength, penalty.accumulate, penalty.factor) == (1.5, "decay", 0.4)
    assert OnlineEWCPlugin().penalty.factor == 0.95


def test_joint_sees_all_data_once_an_epoch():
    counted = []

    class Count(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            counted.extend(zip(strategy.mb_y.tolist(), strategy.mb_task_id.tolist(), strict=True))

    torch.manual_seed(0)
    model = MultiHead(nn.Linear(5, 8), 8, [2, 2, 2])
    build(Joint, model, [Count()]).train(benchmark(task_labels=True).train_stream)
    assert len(counted) == 2 * 60
    assert {pair: counted.count(pair) for pair in counted} == {(y, t): 20 for y in (0, 1) for t in (0, 1, 2)}


def test_options_are_checked_as_avalanche_checks_its_own():
    with pytest.raises(TypeError, match="lamb"):
        build(MAS, network(), lamb=1.0)
    with pytest.raises(ValueError, match="strength is -1"):
        build(MAS, network(), lam=-1.0)
    with pytest.raises(ValueError, match="mode is 'both'"):
        build(EWC, network(), mode="both")
    with pytest.raises(ValueError, match="max_samples is 0"):
        build(MAS, network(), max_samples=0)
    with pytest.raises(ValueError, match="data is 'tset'"):
        build(MAS, network(), data="tset")
    with pytest.raises(ValueError, match="would look at test labels"):
        build(EWC, network(), labels="empirical", data="both")
    strategy = build(MAS, network(), data="test")
    with pytest.raises(ValueError, match="does not know its benchmark"):
        strategy.train(benchmark_from_datasets(train=[benchmark().train_stream[0].dataset]).train_stream[0])
    assert "norm" in inspect.signature(MAS).parameters
    assert "plugins" in inspect.signature(MAS).parameters


# Minibatches that are dicts, as tokenizers give them.


class Items(Dataset[dict[str, Any]]):
    """Samples whose input has two parts, as dicts."""

    def __init__(self, seed, size=20):
        draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(size, 5, dtype=torch.float64, generator=draw)
        self.scale = torch.rand(size, 1, dtype=torch.float64, generator=draw)
        self.targets = torch.randint(6, (size,), generator=draw).tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return {"x": self.x[i], "scale": self.scale[i], "labels": self.targets[i], "name": f"sample {i}"}


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6)).double()

    def forward(self, x, scale):
        return self.net(x * scale)


class OfDicts(AvalancheNaive):
    """What Avalanche asks of a strategy whose minibatches are dicts."""

    mb_x = property(lambda self: self.mbatch["x"])
    mb_y = property(lambda self: self.mbatch["labels"])
    mb_task_id = property(lambda self: self.mbatch["targets_task_labels"])

    def _unpack_minibatch(self):
        self.mbatch = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in self.mbatch.items()}

    def forward(self):
        return self.model(self.mbatch["x"], self.mbatch["scale"])


def stream_of_dicts(collate_fn=None):
    def with_tasks(items):
        tasks = DataAttribute([0] * len(items), "targets_task_labels", use_in_getitem=True)
        return make_avalanche_dataset(items, data_attributes=[tasks], collate_fn=collate_fn)

    return benchmark_from_datasets(train=[with_tasks(Items(0)), with_tasks(Items(1))]).train_stream


def one_by_one(model, items, objective, power):
    """Reference: |g| or g² of each sample, one backward pass each, and their mean."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, scale, y in zip(items.x, items.scale, items.targets, strict=True):
        output = model(x[None], scale[None])[0]
        for name, g in zip(total, torch.autograd.grad(objective(output, y), list(model.parameters())), strict=True):
            total[name] += g.abs() ** power / len(items)
    return total


def in_a_user_dict(samples):
    return UserDict(default_collate(samples))


@pytest.mark.parametrize("collate_fn", [None, in_a_user_dict])
@pytest.mark.parametrize(
    ("plugin", "objective", "power"),
    [
        (MASPlugin(), lambda output, y: output.square().sum(), 1),
        (EWCPlugin(labels="empirical"), lambda output, y: output.log_softmax(0)[y], 2),
    ],
)
def test_importance_of_dicts_is_that_of_the_strategys_own_forward(plugin, objective, power, collate_fn):
    plugin, model = copy.deepcopy(plugin), Scaled()
    strategy = build(OfDicts, model, [plugin])
    strategy.train(stream_of_dicts(collate_fn)[0])
    own = one_by_one(model, Items(0), objective, power)
    assert_same(plugin.penalty.importance, own)
    plugin.adapt(strategy, Items(1))  # a data set of the user's, without task labels
    met = one_by_one(model, Items(1), objective, power)
    assert_same(plugin.penalty.importance, {name: own[name] + met[name] for name in own})
    assert strategy.mbatch is None  # as it was
    assert strategy.model is model


@pytest.mark.parametrize("name", REGULARISED)
@pytest.mark.parametrize("parameters", ["all", "backbone"])
def test_every_plugin_takes_dicts(name, parameters):
    kind = type(plugin_of(build(REGULARISED[name], network())))
    plugin = kind(lam=1.0, parameters=parameters)
    strategy = build(OfDicts, Scaled(), [plugin])
    train(strategy, stream_of_dicts())
    importance = plugin.penalty.importance
    assert importance["net.0.weight"].any()
    assert ("net.2.weight" in importance) == (parameters == "all")


class TakesDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.scaled = Scaled()

    def forward(self, x):
        return self.scaled(x["x"], x["scale"])


def test_a_dict_is_the_input_where_the_strategy_has_no_other_way():
    """Inside of (x, y, task labels), or alone in a data set of the user's."""

    class Moves(AvalancheNaive):
        def _unpack_minibatch(self):
            self.mbatch = list(self.mbatch)

    class Pairs(Items):
        def __getitem__(self, i):
            return {"x": self.x[i], "scale": self.scale[i]}, self.targets[i]

    tasks = DataAttribute([0] * 20, "targets_task_labels", use_in_getitem=True)
    stream = benchmark_from_datasets(train=[make_avalanche_dataset(Pairs(0), data_attributes=[tasks])]).train_stream
    model, plugin = TakesDict(), MASPlugin()
    strategy = build(Moves, model, [plugin])
    strategy.train(stream[0])
    found = one_by_one(model.scaled, Items(0), lambda output, y: output.square().sum(), 1)
    of_pairs = {f"scaled.{name}": omega for name, omega in found.items()}
    assert_same(plugin.penalty.importance, of_pairs)
    plugin.penalty = mas.QuadraticPenalty()
    plugin.adapt(strategy, Items(0))
    assert_same(plugin.penalty.importance, of_pairs)


def test_a_model_that_does_not_take_dicts_is_one_clear_line():
    strategy = build(MAS, network(), data=Items(0))
    expected = (
        r"^Sequential does not take a minibatch that is a dict of x, scale, labels, name \(TypeError: .*\); "
        r"give the strategy a forward\(\) of its own that reads self.mbatch, or data= whose items are inputs, "
        "or tuples that start with the input$"
    )
    with pytest.raises(ValueError, match=expected):
        strategy.train(benchmark().train_stream[0])
    strategy = build(EWC, TakesDict(), labels="empirical", data=Items(0))
    with pytest.raises(ValueError, match="got unlabelled ones"):
        plugin_of(strategy).adapt(strategy, Items(0))


def test_probes_look_at_dicts_too():
    model, probe = Scaled(), ProbePlugin({"accuracy": PROBES["accuracy"]}, schedule=Schedule(None))
    build(OfDicts, model, [probe]).train(stream_of_dicts()[0])
    items = Items(0)
    right = model(items.x, items.scale).argmax(1) == torch.tensor(items.targets)
    assert probe.rows[-1].value == pytest.approx(right.double().mean().item())


# Models that answer otherwise in eval mode.


@pytest.mark.parametrize("name", REGULARISED)
@pytest.mark.parametrize("parameters", ["all", "backbone"])
def test_icarl_is_refused_before_it_trains(name, parameters):
    """Its classifier in eval mode goes by class means; only SI measures nothing in eval mode."""
    plugin = type(plugin_of(build(REGULARISED[name], network())))(lam=1.0, parameters=parameters)
    body, head = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Linear(8, 6)
    strategy = ICaRL(
        feature_extractor=body,
        classifier=head,
        optimizer=torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.05),
        memory_size=12,
        buffer_transform=None,
        fixed_memory=True,
        train_mb_size=8,
        plugins=[plugin],
        evaluator=EvaluationPlugin(),
    )
    before = head.weight.detach().clone()
    if (name, parameters) == ("si", "all"):
        strategy.train(benchmark().train_stream[0])
        assert plugin.penalty.importance["train_classifier.weight"].any()
        return
    expected = (
        r"TrainEvalModel \(of iCaRL\) answers by NCMClassifier and not by the classifier that is trained; use SIPlugin"
    )
    with pytest.raises(ValueError, match=expected):
        strategy.train(benchmark().train_stream[0])
    assert torch.equal(head.weight, before)


@pytest.mark.parametrize("plugin", [MASPlugin(), EWCPlugin(), RWalkPlugin(interval=1)])
def test_an_output_without_gradient_in_eval_mode_is_one_clear_line(plugin):
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x) if self.training else self.net(x).detach()

    expected = "output of Detached carries no gradient in eval mode, in which importance is measured; .* SIPlugin"
    with pytest.raises(ValueError, match=expected):
        build(AvalancheNaive, Detached(), [copy.deepcopy(plugin)]).train(benchmark().train_stream[0])


@pytest.mark.parametrize("model", [SimpleMLP(num_classes=6, input_size=5, hidden_size=8)])
def test_works_with_avalanches_models(model):
    weights = train(build(MAS, model, lam=1.0), benchmark().train_stream)
    assert all(torch.isfinite(w).all() for w in weights)


def test_multi_head_classifier_of_avalanche_measures_like_a_loop():
    """A mixed batch goes through several heads, each with a part of the samples."""
    from tests.oracles.moments import moments_by_loop

    model = MultiHeadClassifier(5, initial_out_features=2, masking=False)
    for experience in benchmark(task_labels=True).train_stream:
        model.adaptation(experience)
    batch = (torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 0, 1]))

    def run(m, b):
        return m(b[0], b[1])

    def squared(out, b):
        return out.square().sum(1)

    found = mas.per_sample_moments(model, batch, squared, moment="abs", forward=run)
    expected = moments_by_loop(model.eval(), batch, squared, "abs", run)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[n], expected[n].to(found[n]), rtol=1e-5) for n in expected)


@pytest.mark.parametrize("package", ["strategies", "benchmarks"])
def test_a_second_copy_under_another_name_is_refused(package):
    path = f"{package}/__init__.py"
    spec = importlib.util.spec_from_file_location(package, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match=f"import mas.{package}, not {package}"):
        spec.loader.exec_module(module)
    assert package not in sys.modules
