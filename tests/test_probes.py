"""Probes on a schedule: they say what the plain functions say, when it is time, and change nothing."""

import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import yaml
from avalanche.training import Naive as AvalancheNaive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

import mas
from mas.benchmarks import DeficitPlugin, split, whole
from mas.benchmarks.deficits import noise
from mas.experiments.cell import Cell
from mas.experiments.config.schema import MODEL_MODELS
from mas.experiments.errors import UserError
from mas.experiments.networks import mlp
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.training import train_cell
from mas.strategies import MAS, PROBES, SI, Joint, Naive, ProbePlugin, Replay, Schedule
from tests.building import built_mlp, built_strategy

OPTIONS = {
    "information": {"beta": 0.01, "prior_std": 1.0},
    "noise_curve": {"betas": [0.001, 0.1], "prior_std": 1.0, "draws": 2},
    "trainability": {"steps": 3},
}
EXTRA = {"mas": (MAS, {"lam": 1.0}), "si": (SI, {"lam": 1.0}), "replay": (Replay, {"mem_size": 20})}
TRAINING = {"epochs": 2, "batch_size": 20, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0, "momentum": 0.9}
TRAINING |= {"device": "cpu"}


def probe(name):
    return partial(PROBES[name], **OPTIONS.get(name, {}))


def network():
    """Batch normalisation and dropout: what a probe in train mode would leave its traces on."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3))
    return nn.Sequential(body, nn.Linear(12, 10))


def trained(plugins=(), kind=Naive, experiences=1, options=None, training=TRAINING, stream=None):
    stream = stream or whole("digits", train=60, test=30).train_stream
    strategy = built_strategy(kind, network(), training, **(options or {}))
    strategy.plugins += list(plugins)
    for number in range(experiences):
        strategy.train(stream[number % len(stream)])
    return strategy


def state_of(strategy):
    buffers = [b for s in strategy.optimizer.state.values() for b in s.values() if isinstance(b, torch.Tensor)]
    return [*strategy.model.state_dict().values(), *buffers, torch.get_rng_state()]


@pytest.mark.parametrize("data", ["train", "test"])
@pytest.mark.parametrize("name", PROBES)
def test_law_3_a_run_with_probes_ends_as_one_without(name, data):
    plain = trained()
    plugin = ProbePlugin({name: probe(name)}, data, schedule=Schedule(unit="iterations"), max_samples=40)
    probed = trained([plugin])
    assert plugin.rows
    assert all(torch.equal(a, b) for a, b in zip(state_of(plain), state_of(probed), strict=True))
    assert all(m.training == n.training for m, n in zip(plain.model.modules(), probed.model.modules(), strict=True))


@pytest.mark.parametrize("kind", EXTRA)
def test_law_3_holds_for_other_strategies_too(kind):
    cls, options = EXTRA[kind]
    plugin = ProbePlugin({name: probe(name) for name in PROBES})
    probed, plain = trained([plugin], cls, 2, options), trained((), cls, 2, options)
    assert all(torch.equal(a, b) for a, b in zip(state_of(plain), state_of(probed), strict=True))


def images_of(data):
    return data.eval().batch(range(len(data)))[:2]


def batches_of(data):
    return [tuple(data.eval().batch(range(len(data))))]


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_says_what_the_plain_function_says(name):
    stream = whole("digits", train=60, test=30)
    plugin = ProbePlugin({name: probe(name)}, "test", schedule=Schedule(None))
    model = trained([plugin], stream=stream.train_stream).model
    batches = batches_of(stream.test_stream[0].dataset)
    x, y, _ = batches[0]
    fisher = mas.fisher_importance(model, batches)
    model.eval()
    with torch.no_grad():
        output = model(x)
    curve = (
        {}
        if name != "noise_curve"
        else mas.accuracy_information_curve(model, batches, fisher, [0.001, 0.1], 1.0, draws=2)
    )
    expected = {
        "accuracy": lambda: {"": (output.argmax(1) == y).double().mean()},
        "loss": lambda: {"": F.cross_entropy(output.double(), y)},
        "fisher_trace": lambda: mas.fisher_trace(model, batches),
        "information": lambda: mas.information_in_weights(model, fisher, 0.01, 1.0),
        "noise_curve": lambda: (
            {f"information beta={p.beta:g}": p.information for p in curve}
            | {f"accuracy beta={p.beta:g}": p.accuracy for p in curve}
        ),
        "dormant_units": lambda: mas.dormant_units(model, batches),
        "dead_units": lambda: mas.dead_units(model, batches),
        "effective_rank": lambda: {"": mas.effective_rank(mas.features(model, batches))},
        "stable_rank": lambda: {"": mas.stable_rank(mas.features(model, batches))},
        "mean_weight": lambda: {"": mas.mean_weight(model)},
        "gradient_norm": lambda: {"": mas.gradient_norm(model, batches)},
        "trainability": lambda: {"": mas.trainability(model, batches, steps=3)},
    }[name]()
    assert {row.part: row.value for row in plugin.rows} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert {(row.probe, row.experience, row.epoch, row.iteration) for row in plugin.rows} == {(name, 0, 2, 6)}


# Law 11: a blow-up is said.


def labelled(*sizes):
    return [(torch.randn(n, 64), torch.randint(10, (n,))) for n in sizes]


def on_input(model, batch):
    assert len(batch[0]), "some models cannot take a batch without samples"
    return model(batch[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", PROBES)
def test_law_11_no_probe_gives_a_number_for_a_network_that_diverged(name, value):
    model = network()
    model[1].bias.data[3] = value
    with pytest.raises(FloatingPointError):
        probe(name)(model, labelled(20, 7), on_input)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in PROBES if name != "mean_weight"])  # which needs no output
def test_law_11_no_probe_gives_a_number_for_an_output_that_is_not_finite(name, value):
    """Of a single sample, with finite weights."""

    def run(model, batch):
        factor = torch.ones(len(batch[0]), 1)
        factor[-1] = value
        return model(batch[0]) * factor

    with pytest.raises(FloatingPointError):
        probe(name)(network(), labelled(20, 7), run)


def test_law_11_a_loss_that_is_not_finite_is_a_blow_up():
    """A masked class is none, unless it is a sample's own."""
    mask = torch.tensor([0.0] * 9 + [-math.inf])

    def masked(model, batch):
        return model(batch[0]) + mask

    x, y = labelled(20)[0]
    possible, model = y.clamp(max=8), network().eval()
    assert PROBES["accuracy"](model, [(x, y)], masked) == float((model(x)[:, :9].argmax(1) == y).double().mean())
    expected = F.cross_entropy(model(x)[:, :9].double(), possible).item()
    assert PROBES["loss"](model, [(x, possible)], masked) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(FloatingPointError, match="the loss is inf"):
        PROBES["loss"](model, [(x, torch.full_like(y, 9))], masked)


def spoiled(*args, **options):
    """Build an MLP whose first training step makes a weight NaN."""

    def spoil(p):
        p.grad.fill_(math.nan)

    body = mlp(*args, **options)
    body[1].bias.register_post_accumulate_grad_hook(spoil)
    return body


CONFIG = """\
experiment: forgetting
benchmark: {stream: split, dataset: digits, experiences: 2, scenario: domain}
model: {name: mlp, hidden: [8]}
training: {epochs: 1, batch_size: 64}
strategies: [{name: naive}]
probes:
  - %s
seeds: 1
"""


def config_with(folder, **probe):
    """Load a config with one probe, that looks after each iteration."""
    file = folder / "probed.yaml"
    file.write_text(CONFIG % yaml.safe_dump({"data": ["test"], "unit": "iterations"} | probe, default_flow_style=True))
    return load_config(file)


@pytest.mark.parametrize("name", PROBES)
def test_law_11_a_probe_ends_a_cell_as_diverged(name, tmp_path, monkeypatch):
    """It looks before the first step, where all is well, and after it, before the loss of the second is known."""
    (cell,) = Plan(config_with(tmp_path, name=name, every=1, **OPTIONS.get(name, {}))).every_cell()
    monkeypatch.setattr(MODEL_MODELS["mlp"], "entry", staticmethod(spoiled))
    outcome = train_cell(cell).outcome
    assert outcome.status == "diverged"
    assert "in experience 0" not in outcome.reason  # it was the probe, not the guard on the training loss
    assert {(row.probe, row.iteration) for row in outcome.probes} == {(name, 0)}
    assert all(math.isfinite(row.value) for row in outcome.probes)


def test_law_11_a_copy_that_diverges_ends_the_cell_with_its_own_reason(tmp_path):
    (cell,) = Plan(config_with(tmp_path, name="trainability", every=1, steps=9)).every_cell()
    probe = cell.settings.probes[0].model_copy(update={"lr": 1e30})  # loading would have refused it
    settings = cell.settings.model_copy(update={"probes": [probe]})
    outcome = train_cell(Cell(cell.label, cell.seed, settings)).outcome
    assert outcome.status == "diverged"
    assert re.fullmatch(r"the copy diverged: its loss is .* steps; use a lower lr than 1e\+30", outcome.reason)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "information", "beta": 1e-300, "prior_std": 1}, "beta is 1e-300, too small for float32"),
        ({"name": "information", "beta": 1, "prior_std": 1e-300}, "prior_std is 1e-300, whose square does not fit"),
        ({"name": "noise_curve", "betas": [1, 1e-300], "prior_std": 1}, "beta is 1e-300, too small for float32"),
        ({"name": "trainability", "lr": 1e30}, "the copy diverged: its loss is .*; use a lower lr"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_probe_that_cannot_work_is_found_when_the_config_is_loaded(options, message, tmp_path):
    with pytest.raises(UserError, match=rf"probed.yaml:7: probes\[0\]: {message}"):
        config_with(tmp_path, **options)


@pytest.mark.parametrize("name", PROBES)
def test_law_2_batches_without_samples_do_not_matter(name):
    model, (first, second, none) = network(), labelled(20, 7, 0)
    expected = probe(name)(model, [first, second], on_input)
    for batches in ([none, first, second], [first, none, second, none]):
        assert probe(name)(model, batches, on_input) == expected


@pytest.mark.parametrize("batches", [[], labelled(0), labelled(0, 0)], ids=["none", "one", "two"])
@pytest.mark.parametrize("name", [name for name in PROBES if name != "mean_weight"])  # which needs no data
def test_no_sample_at_all_is_one_clear_error(name, batches):
    with pytest.raises(ValueError, match="batches gave no sample; give"):
        probe(name)(network(), batches, on_input)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12), (5, 15)]),
        (Schedule(2), [(0, 0), (2, 6), (4, 12), (5, 15)]),
        (Schedule(9), [(0, 0), (5, 15)]),
        (Schedule(None), [(5, 15)]),
        (Schedule(6, "iterations"), [(0, 0), (1, 6), (3, 12), (5, 15)]),
        (Schedule(3, "iterations", "log"), [(0, 0), (0, 1), (0, 2), (1, 5), (3, 10), (5, 15)]),
        (Schedule(1, "epochs", "log"), [(0, 0), (1, 3), (5, 15)]),
    ],
)
def test_it_looks_when_it_is_time(schedule, expected):
    """Rows tell epochs that are done: the sixth iteration ends the second epoch, and is looked at before it does."""
    plugin = ProbePlugin({"accuracy": PROBES["accuracy"]}, schedule=schedule)
    trained([plugin], training=TRAINING | {"epochs": 5})
    assert [(row.epoch, row.iteration) for row in plugin.rows] == expected


def test_log_spacing_is_even_in_the_logarithm():
    due = [n for n in range(1, 100_001) if Schedule(2, spacing="log").due(n)]
    assert due == [1, 3, 10, 32, 100, 316, 1000, 3162, 10000, 31623, 100000]


def test_each_experience_is_looked_at_from_its_beginning_on_its_own_data():
    stream = split("digits", 5, scenario="task", normalize=False)
    model = built_mlp(stream, 8)
    plugin = ProbePlugin({"accuracy": PROBES["accuracy"], "rank": PROBES["effective_rank"]}, "test")
    strategy = built_strategy(Naive, model, TRAINING)
    strategy.plugins.append(plugin)
    found = []
    for experience, test in zip(stream.train_stream, stream.test_stream, strict=True):
        strategy.train(experience)
        x, y, task = test.dataset.eval().batch(range(len(test.dataset)))
        model.eval()
        found.append(float((model(x, task).argmax(1) == y).double().mean()))
    rows = [row for row in plugin.rows if row.probe == "accuracy"]
    assert [(row.experience, row.epoch) for row in rows] == [(t, e) for t in range(5) for e in range(3)]
    assert [row.value for row in rows if row.epoch == 2] == pytest.approx(found)


def test_a_draw_is_the_same_each_time():
    stream = whole("digits", train=60, test=30)
    seen = []

    def note(model, batches, forward):
        seen.append(torch.cat([batch[0] for batch in batches]))
        return 0.0

    trained([ProbePlugin({"note": note}, max_samples=7)], stream=stream.train_stream)
    assert [len(x) for x in seen] == [7, 7, 7]
    assert all(torch.equal(x, seen[0]) for x in seen)


def test_probes_see_clear_data_while_a_deficit_lasts():
    stream = whole("digits", train=60, test=30)
    seen = []

    def note(model, batches, forward):
        seen.append(torch.cat([batch[0] for batch in batches]))
        return 0.0

    trained([DeficitPlugin(noise, 0, 2), ProbePlugin({"note": note})], stream=stream.train_stream)
    clear = stream.train_stream[0].dataset.batch(range(60))[0]
    assert all(torch.equal(x, clear) for x in seen)


def test_avalanches_own_strategies_take_probes():
    stream = whole("digits", train=60, test=30)
    plugin = ProbePlugin({"trace": PROBES["fisher_trace"]})
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = AvalancheNaive(
        *(model, optimizer), train_mb_size=20, train_epochs=2, plugins=[plugin], evaluator=EvaluationPlugin()
    )
    strategy.train(stream.train_stream[0])
    assert {row.part for row in plugin.rows} == {"0.1", "0.2", "1"}
    assert all(row.value > 0 for row in plugin.rows)


@pytest.mark.parametrize(
    ("data", "view"),
    [
        ("test", "test_stream"),
        ("train", "train_stream"),
        (lambda e: TensorDataset(*images_of(e.dataset)), "train_stream"),
    ],
    ids=["test", "train", "function"],
)
def test_joint_training_is_looked_at_on_all_that_it_learns(data, view):
    stream, seen = split("digits", 5, scenario="domain"), []

    def note(model, batches, forward):
        seen.append(torch.cat([batch[0] for batch in batches]))
        return 0.0

    strategy = built_strategy(Joint, network(), TRAINING | {"epochs": 1})
    strategy.plugins.append(ProbePlugin({"note": note}, data))
    strategy.train(stream.train_stream)
    assert len(seen) == 2
    every = torch.cat([images_of(e.dataset)[0] for e in getattr(stream, view)])
    assert all(torch.equal(x, every) for x in seen)
    assert {row.experience for row in strategy.plugins[-1].rows} == {4}


def test_data_of_joint_tasks_need_their_labels():
    stream = split("digits", 5, scenario="task")
    model = built_mlp(stream, 8)
    strategy = built_strategy(Joint, model, TRAINING | {"epochs": 1})
    plain = ProbePlugin({"accuracy": PROBES["accuracy"]}, lambda e: TensorDataset(*images_of(e.dataset)))
    strategy.plugins.append(plain)
    with pytest.raises(ValueError, match="data of several tasks need task labels; pass Avalanche data sets"):
        strategy.train(stream.train_stream)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(Schedule, 0), "every is 0; give a number of at least 1, or None"),
        (partial(ProbePlugin, {}, max_samples=0), "max_samples is 0; give"),
        (partial(ProbePlugin, {}, "train_data"), "data is 'train_data'; known are"),
        (partial(PROBES["accuracy"], network(), [torch.zeros(2, 64)], lambda m, b: m(b)), "needs batches of"),
        (partial(PROBES["loss"], network(), [], lambda m, b: m(b[0])), "gave no sample"),
    ],
)
def test_wrong_use_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_trace_needs_a_classifier():
    model = nn.Sequential(nn.Conv2d(1, 4, 3))  # an image for each class
    plugin = ProbePlugin({"trace": PROBES["fisher_trace"]})
    strategy = built_strategy(Naive, model, TRAINING)
    strategy.plugins.append(plugin)
    with pytest.raises(ValueError, match=r"logits|classes") as error:
        strategy.train(whole("digits", train=60, test=30).train_stream[0])
    assert "\n" not in str(error.value)
    assert "(N" in str(error.value)
