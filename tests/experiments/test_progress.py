"""What a cell reports while it is trained: how often, how far it has come, and that it changes nothing."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from mas.experiments import progress
from mas.experiments.build import build_benchmark, build_strategy
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.context import CellContext
from mas.experiments.engines.local import run_local
from mas.experiments.engines.task import Task, TaskQueue
from mas.experiments.events import CellAt, CellStarted, CellTested, EpochEnded
from mas.experiments.jobs import run_cell
from mas.experiments.plan import Plan
from mas.experiments.progress import Interval, ProgressPlugin, StepReports, as_part
from mas.experiments.read_config import load_config
from mas.experiments.training import train_cell
from mas.strategies import STRATEGIES
from tests.experiments.builders import first_cell
from tests.experiments.test_resuming import KilledError, KillingCheckpoints, cell_of


@pytest.fixture
def always(monkeypatch):
    """Report after each step, not twice a second."""
    monkeypatch.setattr(Interval, "is_over", lambda self: True)


def events_of(cell, **context):
    events = []
    trained = train_cell(cell, True, CellContext(report=events.append, **context))
    return trained, events


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_law_3_a_cell_that_reports_ends_as_one_that_does_not(name, always):
    cell = cell_of(name)
    silent = train_cell(cell, True)
    reporting, events = events_of(cell)
    assert len(of(CellAt, events)) > 5
    assert reporting.outcome.accuracy == silent.outcome.accuracy
    assert all(torch.equal(reporting.weights[key], tensor) for key, tensor in silent.weights.items())


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_shares_rise_from_0_to_1(name, always):
    _, events = events_of(cell_of(name))
    at = of(CellAt, events)
    shares = [event.share for event in at]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)
    assert max(after - before for before, after in pairwise(shares)) < 0.2
    stages = 1 if name == "joint" else 3
    places = list(dict.fromkeys((event.experience, event.epoch) for event in at))
    assert [place for place in places if place[1] < 2] == [(t, epoch) for t in range(stages) for epoch in range(2)]
    assert {(event.experiences, event.epochs) for event in at} == {(stages, 2)}


def test_the_share_counts_samples_and_epochs(always):
    """Experiences of 3 and 1 epochs and as many samples: the first one is three quarters."""
    cell = first_cell("naive", training={"epochs": [3, 1], "batch_size": 64})
    _, events = events_of(cell)
    benchmark = build_benchmark(cell.training, cell.seed)
    work = [epochs * len(e.dataset) for epochs, e in zip((3, 1), benchmark.train_stream, strict=True)]
    first_of_second = next(event for event in of(CellAt, events) if event.experience == 1)
    assert first_of_second.share == pytest.approx(work[0] / sum(work))
    second_epoch = next(event for event in of(CellAt, events) if event.epoch == 1)
    assert second_epoch.share == pytest.approx(work[0] / 3 / sum(work))


def test_at_most_two_reports_a_second(monkeypatch):
    now = 0.0
    monkeypatch.setattr("mas.experiments.progress.time.perf_counter", lambda: now)
    times = []

    def report(event):
        if isinstance(event, CellAt) and event.share < 1:
            times.append(now)

    def step(*args, **kwargs):
        nonlocal now
        now += 0.03

    strategy_step = progress.ProgressPlugin.after_training_iteration
    monkeypatch.setattr(
        progress.ProgressPlugin,
        "after_training_iteration",
        lambda *args, **kwargs: (step(), strategy_step(*args, **kwargs)),
    )
    train_cell(first_cell("naive", training={"epochs": 6, "batch_size": 64}), False, CellContext(report=report))
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) > 5
    assert min(gaps) >= 0.5 - 1e-9
    assert max(gaps) <= 0.5 + 0.03 + 1e-9


def test_an_epoch_ends_with_the_means_over_its_samples(always):
    """Against the losses and outputs of each step, by hand: the last batch is smaller than the others."""
    cell = first_cell("naive", training={"epochs": 2, "batch_size": 50})
    benchmark = build_benchmark(cell.training, cell.seed)
    strategy = build_strategy(cell.training, benchmark, cell.seed)
    samples = len(benchmark.train_stream[0].dataset)
    assert samples % 50
    steps, events = [], []

    class Notes(ProgressPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs):
            right = int((strategy.mb_output.argmax(1) == strategy.mb_y).sum())
            steps.append((float(strategy.loss), right, len(strategy.mb_y)))
            super().after_training_iteration(strategy, *args, **kwargs)

    strategy.train_epochs = 2
    strategy.plugins.append(Notes(cell, [progress.Stage(2, samples)], events.append))
    strategy.train(benchmark.train_stream[0])
    found = of(EpochEnded, events)
    assert [(e.experience, e.epoch, e.epochs_done) for e in found] == [(0, 0, 1), (0, 1, 2)]
    half = len(steps) // 2
    for event, own in zip(found, (steps[:half], steps[half:]), strict=True):
        assert sum(size for *_, size in own) == samples
        assert event.loss == pytest.approx(sum(loss * size for loss, _, size in own) / samples, rel=1e-6)
        assert event.accuracy == pytest.approx(sum(right for _, right, _ in own) / samples, rel=1e-12)
    recent = of(CellAt, events)[1]  # the first is before the first step
    assert recent.loss == pytest.approx(steps[0][0], rel=1e-6)


def test_epochs_are_counted_over_the_whole_stream():
    _, events = events_of(cell_of("naive"))
    found = [(event.experience, event.epoch, event.epochs_done) for event in of(EpochEnded, events)]
    assert found == [(0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 1, 4), (2, 0, 5), (2, 1, 6)]


def test_a_cell_is_tested_before_and_after_each_experience():
    trained, events = events_of(cell_of("naive"))
    found = of(CellTested, events)
    assert [event.trained_on for event in found] == [-1, 0, 1, 2]
    assert list(found[0].accuracies) == trained.outcome.untrained
    assert [list(event.accuracies) for event in found[1:]] == trained.outcome.accuracy


@pytest.mark.parametrize("kills", [2, 4, 7, 12])
def test_a_cell_that_goes_on_reports_from_where_it_was(kills, tmp_path, always):
    cell = cell_of("mas")
    expected, whole = events_of(cell)
    before = []
    with pytest.raises(KilledError):
        train_cell(cell, True, CellContext(KillingCheckpoints(tmp_path, kills), before.append))
    found, after = events_of(cell, checkpoints=Checkpoints(tmp_path))
    last = of(CellAt, before)[-1].share if of(CellAt, before) else 0.0
    first = of(CellAt, after)[0].share
    assert first == pytest.approx(last, abs=0.1)
    shares = [event.share for event in of(CellAt, whole)]
    rest = [event.share for event in of(CellAt, after)]
    assert rest == [share for share in shares if share >= rest[0]]
    assert found.outcome.accuracy == expected.outcome.accuracy
    epochs = [(e.experience, e.epoch) for e in of(EpochEnded, after)]
    assert epochs == [(e.experience, e.epoch) for e in of(EpochEnded, whole)][-len(epochs) :]


def test_a_cell_may_report_before_it_is_stopped_and_be_silent_afterwards(tmp_path):
    cell = cell_of("replay")
    expected = train_cell(cell, True)
    with pytest.raises(KilledError):
        train_cell(cell, True, CellContext(KillingCheckpoints(tmp_path, 4), lambda event: None))
    found = train_cell(cell, True, CellContext(Checkpoints(tmp_path)))
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())


def test_copies_that_try_a_strength_do_not_report(always):
    lam = {"select": "continual", "start": 100.0, "decay": 0.1}
    cell = cell_of({"name": "mas", "lam": lam}, selection={"seeds": [7], "validation": 0.2})
    trained, events = events_of(cell)
    assert sum(map(len, trained.outcome.tries)) > 2
    assert len(of(EpochEnded, events)) == 6
    shares = [event.share for event in of(CellAt, events)]
    assert shares == sorted(shares)


def test_what_is_no_classifier_has_no_accuracy():
    means = progress._Means()
    means.add(torch.tensor(1.0), torch.zeros(4, 3, 2), torch.zeros(4))
    assert means.values() == (None, None)


TASK_MAP = {
    "experiment": "task_map",
    "streams": [{"stream": "split", "dataset": {"name": "digits", "train": 300, "test": 60}, "experiences": 5}],
    "probe_network": {
        "model": {"name": "mlp", "hidden": [8]},
        "benchmark": {"dataset": {"name": "digits", "train": 200, "test": 40}},
        "training": {"epochs": 2, "batch_size": 50},
    },
    "embedding": {"parts": 1},
    "seeds": 1,
}


def test_a_cell_that_embeds_reports_its_probe_network_and_its_tasks(always, tmp_path, monkeypatch):
    monkeypatch.setenv("MAS_CACHE", str(tmp_path))
    cell = Plan(load_config(TASK_MAP)).every_cell()[0]
    events = []
    found = run_cell(cell, False, CellContext(report=events.append))
    assert {event.cell.id for event in events} == {cell.id}
    of_probe = [event for event in events if event.part == "probe network"]
    assert len(of_probe) > 5
    assert {event.share for event in of_probe} == {0.0}
    assert {(event.epoch, event.epochs) for event in of_probe} == {(0, 2), (1, 2)}
    rest = events[len(of_probe) :]
    assert [event.share for event in rest] == [number / 5 for number in range(6)]
    assert [event.experience for event in rest] == [0, 1, 2, 3, 4, 4]
    silent = run_cell(cell)
    assert silent.outcome.embeddings == found.outcome.embeddings


EXPERTS = {
    "experiment": "expert_selection",
    "benchmark": {"dataset": {"name": "digits", "train": 400, "test": 60}, "experiences": 5},
    "experts": 2,
    "probe_network": {"model": {"name": "mlp", "hidden": [8]}},
    "training": {"epochs": 3, "batch_size": 20},
    "transfer": {"per_class": 10},
    "seeds": 1,
}


def test_an_expert_reports_its_training_and_its_tasks(always):
    cells = Plan(load_config(EXPERTS)).every_cell()
    (cell,) = [cell for cell in cells if cell.label == "expert-0"]
    events = []
    found = run_cell(cell, False, CellContext(report=events.append))
    of_expert = [event for event in events if event.part == "expert"]
    assert [event.epoch for event in of_expert] == sorted(event.epoch for event in of_expert)
    assert {(event.epoch, event.epochs) for event in of_expert} == {(0, 3), (1, 3), (2, 3)}
    assert of_expert[1].loss > 0
    assert [event.share for event in events[len(of_expert) :]] == [number / 5 for number in range(6)]
    assert {event.cell.id for event in events} == {cell.id}
    assert run_cell(cell).outcome.accuracy == found.outcome.accuracy


def test_steps_are_reported_from_0_to_1_whatever_the_time():
    events = []
    cell = first_cell("naive")
    reports = StepReports(cell, 4, events.append)
    for done in range(5):
        reports.at(done)
    assert [event.share for event in events] == [0.0, 1.0]


def test_the_events_of_a_part_are_those_of_the_cell():
    cell, other = first_cell("naive"), first_cell("mas")
    events = []
    report = as_part(cell, "probe network", events.append)
    at = CellAt(other, 1, 2, 3, 4, 0.5, 0.25, 0.75)
    report(at)
    report(EpochEnded(other, 0, 0, 1))
    assert events == [replace(at, cell=cell, share=0.0, part="probe network")]


@pytest.mark.slow
def test_workers_send_their_events_to_the_driver():
    cells = Plan(load_config(SMALL, ["seeds=2"])).every_cell()
    events = []
    tasks = TaskQueue([Task(cell, False, None) for cell in cells])
    results = list(run_local(tasks, events.append, workers=2))
    assert len(results) == 2
    for cell in cells:
        own = [event for event in events if event.cell == cell]
        assert isinstance(own[0], CellStarted)
        assert [event.share for event in of(CellAt, own)][:: max(1, len(of(CellAt, own)) - 1)] == [0.0, 1.0]
        assert len(of(EpochEnded, own)) == 2
        assert len(of(CellTested, own)) == 3


SMALL = {
    "experiment": "forgetting",
    "benchmark": {"dataset": "digits", "experiences": 2},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 1, "batch_size": 128},
    "strategies": [{"name": "naive"}],
}


def test_nothing_is_noted_where_nobody_listens():
    cell = first_cell("naive")
    benchmark = build_benchmark(cell.training, cell.seed)
    strategy = build_strategy(cell.training, benchmark, cell.seed)
    plugin = ProgressPlugin(cell, [progress.Stage(1, 10)], progress.ignore)
    strategy.plugins.append(plugin)
    strategy.train(benchmark.train_stream[0])
    assert plugin.of_epoch.seen == 0
    assert isinstance(strategy.model, nn.Module)
