"""The strategy layer on Avalanche: laws 3, 4, 7 and 10, the logged loss, and others' code beside ours."""

import importlib.util
import inspect
import sys
from functools import partial

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import loss_metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP, MultiHeadClassifier, SimpleMLP
from avalanche.training import Naive as AvalancheNaive
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, ReplayPlugin, SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

import mas
from mas.experiments.models import MultiHead
from mas.strategies import EWC, MAS, STRATEGIES, EWCPlugin, Joint, MASPlugin, Naive

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


def train(strategy, stream):
    torch.manual_seed(2)
    for experience in stream:
        strategy.train(experience)
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
        def importance(seed, limit):
            strategy = build(REGULARISED[name], network(), lam=1.0, max_samples=limit)
            plugin_of(strategy).generator.manual_seed(seed)
            weights = train(strategy, benchmark().train_stream[:1])
            return plugin_of(strategy).penalty.importance["0.weight"], weights

        (a, wa), (b, _), (c, wc) = importance(0, 4), importance(0, 4), importance(1, 4)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert all(torch.equal(x, y) for x, y in zip(wa, wc, strict=True))


def plugin_of(strategy):
    return next(p for p in strategy.plugins if isinstance(p, mas.strategies.ImportancePlugin))


@pytest.mark.parametrize("plugin", [partial(MASPlugin, 1.0), partial(EWCPlugin, 1.0)])
def test_plugins_work_in_avalanches_own_naive(plugin):
    own = train(build(AvalancheNaive, network(), [plugin()]), benchmark().train_stream)
    strategy = {MASPlugin: MAS, EWCPlugin: EWC}[plugin.func]
    ours = train(build(strategy, network(), lam=1.0), benchmark().train_stream)
    assert all(torch.equal(a, b) for a, b in zip(own, ours, strict=True))


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


def test_joint_sees_all_data_once_an_epoch():
    counted = []

    class Count(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            counted.extend(zip(strategy.mb_y.tolist(), strategy.mb_task_id.tolist(), strict=True))

    torch.manual_seed(0)
    model = MultiHead(nn.Linear(5, 8), 8, 2, 3)
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
    assert "norm" in inspect.signature(MAS).parameters
    assert "plugins" in inspect.signature(MAS).parameters


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

    found = mas.per_sample_moments(model, batch, squared, "abs", run)
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
