"""How a cell is trained: optimizers, losses and schedules by name, against training by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mas.experiments.build import build_benchmark, build_strategy, model_for
from mas.experiments.config.schema import SCHEDULE_MODELS
from mas.experiments.errors import UserError
from mas.experiments.losses import LOSSES, cross_entropy, multi_margin, squared_error
from mas.experiments.optimizers import OPTIMIZERS
from mas.experiments.read_config import load_config
from mas.experiments.schedules import TORCH_SCHEDULES
from mas.experiments.seeds import stream_seed
from mas.experiments.training import train_cell
from tests.experiments.builders import first_cell

TEXT = """\
experiment: forgetting
benchmark: {stream: split, dataset: digits, experiences: 2, scenario: domain}
model: {name: mlp, hidden: [8]}
training:
  epochs: 3
  lr: 0.01
strategies: [{name: naive}]
seeds: 1
"""


def written(value):
    """Return the name of a test's case, the same in every process: a function's text holds its address."""
    return "by_hand" if callable(value) else str(value)[:40]


def cell_trained_with(**training):
    return first_cell("naive", training={"epochs": 2, "batch_size": 64, "lr": 0.01} | training)


def weights_by_strategy(cell):
    """Return the initial weights, the batches of the first experience and the weights after it."""
    benchmark = build_benchmark(cell.settings, cell.seed)
    strategy = build_strategy(cell.settings, benchmark, cell.seed)
    first = model_for(benchmark, cell.settings.model, stream_seed(cell.seed, "initialisation"))
    batches = []

    def note(module, inputs):
        if module.training:
            batches.append((inputs[0].clone(), strategy.mb_y.clone()))

    handle = strategy.model.register_forward_pre_hook(note)
    strategy.train(benchmark.train_stream[0])
    handle.remove()
    return first, batches, list(strategy.model.parameters())


def by_hand(model, batches, optimizer, loss=F.cross_entropy):
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return list(model.parameters())


# Optimizers.

OPTIONS = [
    ("adamw", {}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)),
    (
        {"name": "adamw", "betas": [0.8, 0.9], "eps": 1e-4},
        {"weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.1),
    ),
    ({"name": "rmsprop", "alpha": 0.5}, {"momentum": 0.9}, lambda p: torch.optim.RMSprop(p, 0.01, 0.5, momentum=0.9)),
    (
        {"name": "sgd", "nesterov": True},
        {"momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01, nesterov=True),
    ),
    ("adagrad", {}, lambda p: torch.optim.Adagrad(p, lr=0.01)),
    ("rprop", {}, lambda p: torch.optim.Rprop(p, lr=0.01)),  # which has no weight_decay
    ("adam", {}, lambda p: torch.optim.Adam(p, lr=0.01)),
    ({"name": "adam", "foreach": True}, {}, lambda p: torch.optim.Adam(p, lr=0.01, foreach=True)),
]


@pytest.mark.parametrize(("name", "others", "make"), OPTIONS, ids=written)
def test_an_optimizer_by_name_trains_as_by_hand(name, others, make):
    model, batches, found = weights_by_strategy(cell_trained_with(optimizer=name, **others))
    before = [p.detach().clone() for p in model.parameters()]
    assert len(batches) > 20
    expected = by_hand(model, batches, make(model.parameters()))
    assert not torch.equal(before[0], found[0])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_optimizer_without_weight_decay_refuses_it(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    with pytest.raises(UserError, match=r"training\.weight_decay: found weight_decay with rprop; allowed: only with"):
        load_config(path, ["training.optimizer=rprop", "training.weight_decay=0.1"])


def test_options_of_an_optimizer_matter():
    plain, other = ({"name": "adamw", "betas": [beta, 0.99]} for beta in (0.9, 0.1))
    first = weights_by_strategy(cell_trained_with(optimizer=plain))[2]
    second = weights_by_strategy(cell_trained_with(optimizer=other))[2]
    assert not torch.allclose(first[0], second[0], atol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_can_be_named(name):
    outcome = train_cell(cell_trained_with(optimizer=name, epochs=1)).outcome
    assert outcome.status in ("finished", "diverged")
    assert None not in outcome.accuracy[0] or outcome.status == "diverged"


# Losses: the formulas, in float64.


def draw(classes=4, n=7):
    generator = torch.Generator().manual_seed(0)
    output = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return output, torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_is_its_formula(smoothing):
    output, y = draw()
    total = 0.0
    for row, label in zip(output.tolist(), y.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for k, value in enumerate(row):
            expected = (1 - smoothing) * (k == label) + smoothing / len(row)
            total += expected * (log_sum - value)
    assert float(cross_entropy(output, y, label_smoothing=smoothing)) == pytest.approx(total / len(y), rel=1e-12)


def test_squared_error_is_its_formula():
    output, y = draw()
    rows = zip(output.tolist(), y.tolist(), strict=True)
    total = sum((value - (k == label)) ** 2 for row, label in rows for k, value in enumerate(row))
    assert float(squared_error(output, y)) == pytest.approx(total / len(y), rel=1e-12)


@pytest.mark.parametrize(("margin", "p"), [(1.0, 1), (0.5, 1), (2.0, 2)])
def test_multi_margin_is_its_formula(margin, p):
    output, y = draw()
    total = 0.0
    for row, label in zip(output.tolist(), y.tolist(), strict=True):
        others = [value for k, value in enumerate(row) if k != label]
        total += sum(max(0.0, margin - row[label] + value) ** p for value in others) / len(row)
    assert float(multi_margin(output, y, margin=margin, p=p)) == pytest.approx(total / len(y), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_along_a_growing_head(name):
    benchmark = {"stream": "split", "dataset": "digits", "experiences": 5, "scenario": "class"}
    cell = first_cell(
        "naive",
        benchmark=benchmark,
        model={"name": "mlp", "hidden": [8], "head": "growing"},
        training={"epochs": 1, "loss": name},
    )
    outcome = train_cell(cell).outcome
    assert outcome.status == "finished"
    assert outcome.matrix().shape == (5, 5)


@pytest.mark.parametrize(
    ("loss", "by_formula"),
    [
        ({"name": "cross_entropy", "label_smoothing": 0.3}, lambda o, y: F.cross_entropy(o, y, label_smoothing=0.3)),
        ("squared_error", lambda o, y: ((o - torch.eye(o.shape[1])[y]) ** 2).sum(1).mean()),
        ({"name": "multi_margin", "margin": 0.5}, nn.MultiMarginLoss(margin=0.5)),
    ],
    ids=written,
)
def test_a_loss_by_name_trains_as_by_hand(loss, by_formula):
    model, batches, found = weights_by_strategy(cell_trained_with(loss=loss, optimizer="sgd"))
    expected = by_hand(model, batches, torch.optim.SGD(model.parameters(), lr=0.01), by_formula)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


# Schedules.

SCHEDULES = [
    {"name": "StepLR", "step_size": 2, "gamma": 0.5},
    {"name": "MultiStepLR", "milestones": [1, 4], "gamma": 0.1},
    {"name": "ExponentialLR", "gamma": 0.9},
    {"name": "CosineAnnealingLR", "T_max": 6},
    {"name": "CosineAnnealingLR", "T_max": 6, "eta_min": 0.001},
    {"name": "CosineAnnealingWarmRestarts", "T_0": 2, "T_mult": 2, "eta_min": 0.001},
    {"name": "LinearLR", "start_factor": 0.25, "total_iters": 3},
    {"name": "ConstantLR", "factor": 0.5, "total_iters": 2},
    {"name": "PolynomialLR", "total_iters": 5, "power": 2.0},
]


def rates_of_torch(schedule, lr, epochs):
    options = {key: value for key, value in schedule.items() if key != "name"}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = getattr(torch.optim.lr_scheduler, schedule["name"])(optimizer, **options)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("lr", [1.0, 0.05])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_schedule_of_torch_gives_its_rates(schedule, lr):
    training = cell_trained_with(schedule=schedule, lr=lr).settings.training
    found = [lr * training.rate_factor(epoch) for epoch in range(7)]
    assert found == pytest.approx(rates_of_torch(schedule, lr, 7), rel=1e-9, abs=1e-15)


def test_the_factors_of_step_lr():
    training = cell_trained_with(schedule=SCHEDULES[0]).settings.training
    assert [training.rate_factor(epoch) for epoch in range(6)] == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


def test_every_schedule_of_torch_is_tested():
    assert {schedule["name"] for schedule in SCHEDULES} == set(TORCH_SCHEDULES)
    assert set(TORCH_SCHEDULES) < set(SCHEDULE_MODELS)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizer_has_the_schedules_rate_in_each_epoch(optimizer):
    """Counted from the beginning of each experience."""
    schedule = {"name": "StepLR", "step_size": 2, "gamma": 0.5}
    cell = cell_trained_with(schedule=schedule, optimizer=optimizer, epochs=[5, 3], lr=0.1)
    benchmark = build_benchmark(cell.settings, cell.seed)
    strategy = build_strategy(cell.settings, benchmark, cell.seed)
    seen = []
    real = strategy.training_epoch

    def noting(**kwargs):
        seen.append(strategy.optimizer.param_groups[0]["lr"])
        real(**kwargs)

    strategy.training_epoch = noting
    for experience, epochs in zip(benchmark.train_stream, (5, 3), strict=True):
        strategy.train_epochs = epochs
        strategy.train(experience)
    assert seen == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.1, 0.1, 0.05])


def test_step_and_step_lr_are_the_same_training():
    ours = train_cell(cell_trained_with(schedule={"name": "step", "every": 1, "decay": 0.5})).outcome
    torchs = train_cell(cell_trained_with(schedule={"name": "StepLR", "step_size": 1, "gamma": 0.5})).outcome
    assert np.array_equal(ours.matrix(), torchs.matrix())


# What is wrong is said in one line, where it stands.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("optimizer: adamx", "training.optimizer: found 'adamx', did you mean 'adam"),
        (
            "optimizer: {name: adamw, beta: 1}",
            "training.optimizer: does not fit: adamw has no option 'beta'; it has: betas, eps",
        ),
        ("optimizer: {name: adamw, betas: 3}", "training.optimizer: "),
        ("optimizer: {name: adamw, betas: [2.0, 0.9]}", "training.optimizer: Invalid beta parameter"),
        ("optimizer: {name: sgd, nesterov: true}", "training.optimizer: Nesterov momentum requires"),
        ("optimizer: {name: adamw, lr: 1}", "training.optimizer: "),
        ("optimizer: {name: sgd, momentum: 0.5}", "training.optimizer: "),
        ("optimizer: 3", "training.optimizer: found 3; allowed: "),
        ("optimizer: lbfgs", "training.optimizer: found 'lbfgs'; allowed: "),
        ("momentum: 0.9", "training.momentum: found momentum with adam; allowed: only with optimizer: rmsprop, sgd"),
        ("loss: crossentropy", "training.loss.name: found 'crossentropy', did you mean 'cross_entropy'?; allowed: "),
        ("loss: {name: multi_margin, p: 3}", "training.loss.p: found 3; allowed: 1, 2"),
        ("loss: {name: cross_entropy, label_smoothing: 1.5}", "training.loss.label_smoothing: found 1.5; allowed: "),
        ("loss: {name: squared_error, margin: 1}", "training.loss.margin: unknown key; allowed: name"),
        ("schedule: {name: StepLr, step_size: 2}", "training.schedule.name: found 'StepLr', did you mean 'StepLR'?"),
        ("schedule: {name: StepLR}", "training.schedule: does not fit: StepLR needs the option 'step_size'; add it"),
        (
            "schedule: {name: StepLR, step: 2}",
            "training.schedule: does not fit: StepLR has no option 'step'; it has: step_size",
        ),
        ("schedule: {name: StepLR, step_size: two}", "training.schedule: "),
        ("schedule: {name: StepLR, step_size: 0}", "training.schedule: "),
        ("schedule: {name: LinearLR, start_factor: 7.0}", "training.schedule: "),
        ("schedule: {name: OneCycleLR, max_lr: 1}", "training.schedule.name: found 'OneCycleLR'"),
    ],
)
def test_what_is_wrong_with_training_is_said_in_one_line(line, expected, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(TEXT.replace("  lr: 0.01\n", f"  lr: 0.01\n  {line}\n"))
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith(f"{path}:7: {expected}")
    assert "\n" not in caught.value.lines[0]
