"""Whole runs in small: laws 9 to 11, and resuming."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from torch import nn

from mas.benchmarks import split
from mas.experiments import training
from mas.experiments.build import build_benchmark, build_strategy
from mas.experiments.config.schema import MODEL_MODELS
from mas.experiments.engines.devices import cores
from mas.experiments.errors import UserError
from mas.experiments.events import CellEnded, Started
from mas.experiments.plan import Plan
from mas.experiments.provenance import environment
from mas.experiments.read_config import load_config
from mas.experiments.record import Outcome
from mas.experiments.runner import run_experiment
from mas.experiments.store import Store
from mas.experiments.training import train_cell
from mas.strategies import STRATEGIES
from tests.experiments.builders import TEXT, first_cell, made_up, without_time

TRAIN_CELL = "mas.experiments.engines.task.run_cell"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def config(config_file):
    return load_config(config_file)


@pytest.fixture(scope="module")
def cells(config):
    return Plan(config).every_cell()


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished run, made once by this process."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, run_experiment(config, folder, workers=1)


def test_avalanches_own_deprecations_are_not_shown_and_other_warnings_are(monkeypatch):
    cell = first_cell({"name": "replay", "mem_size": 5})
    with warnings.catch_warnings(record=True) as caught:
        train_cell(cell)
    assert not caught

    def warns(cell, checkpoints):
        warnings.warn("look here", UserWarning, stacklevel=1)
        return Outcome(), nn.Identity()

    monkeypatch.setattr(training, "_train", warns)
    with pytest.warns(UserWarning, match="look here"):
        train_cell(cell)


# Law 10: paired seeds.


class Trace(SupervisedPlugin):
    """Write down the initial weights and every training batch; draw from the global stream in between."""

    def __init__(self, greedy):
        super().__init__()
        self.greedy, self.batches, self.noise = greedy, [], []

    def before_training_iteration(self, strategy, **kwargs):
        self.batches.append(strategy.mb_x.clone())
        self.noise.append(torch.rand(1).item())
        if self.greedy:
            torch.rand(3)

    def after_training_exp(self, strategy, **kwargs):
        if self.greedy:
            torch.rand(5)


def traced(cell, greedy=False, plugins=()):
    benchmark = build_benchmark(cell.settings, cell.seed)
    strategy = build_strategy(cell.settings, benchmark, cell.seed)
    start = [p.detach().clone() for p in strategy.model.parameters()]
    trace = Trace(greedy)
    strategy.plugins.extend([*plugins, trace])
    if cell.settings.strategy.name == "joint":
        return start, [], []
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return start, trace.batches, trace.noise


# What these train on is not what the stream shows: they add to it, or hold it back.
_OTHER_BATCHES = ("joint", "cumulative", "replay", "der++", "gdumb")


@pytest.mark.parametrize("name", STRATEGIES)
def test_law_10_every_strategy_sees_the_same_weights_stream_and_batch_order(name):
    first = traced(first_cell("naive"))
    assert len(first[1]) > 20
    torch.manual_seed(100 + len(name))  # whatever the global stream stands at
    start, batches, _ = traced(first_cell(name), greedy=True)
    assert all(torch.equal(a, b) for a, b in zip(start, first[0], strict=True))
    if name not in _OTHER_BATCHES:
        assert all(torch.equal(a, b) for a, b in zip(batches, first[1], strict=True))


def test_law_10_training_noise_does_not_depend_on_how_the_order_was_drawn(cells):
    """Replay draws one order more before an epoch's first step; the noise in that step is the same."""
    _, batches, noise = traced(cells[0])
    _, replayed, replay_noise = traced(cells[0], plugins=[ReplayPlugin(20)])
    second = next(i for i, batch in enumerate(replayed) if len(batch) > 64)  # with memory: the second experience
    assert len(batches[second]) == 64
    assert replay_noise[: second + 1] == noise[: second + 1]


def test_law_10_other_seeds_see_other_weights_streams_and_orders(cells):
    first, second = (traced(cell) for cell in cells if cell.label == "naive")
    assert not torch.equal(first[0][0], second[0][0])
    assert not torch.equal(first[1][0], second[1][0])


def test_law_10_the_global_stream_does_not_matter(cells, finished):
    cell = cells[3]
    torch.manual_seed(12345)
    np.random.seed(5)  # the global stream is what this is about
    record = Store(finished[0]).read(cell)
    outcome = train_cell(cell).outcome
    assert (outcome.untrained, outcome.accuracy) == (record.outcome.untrained, record.outcome.accuracy)
    assert (outcome.status, outcome.tries, outcome.probes) == ("finished", record.outcome.tries, [])


def test_a_cell_runs_on_one_thread_and_leaves_the_count_as_it_was(cells, monkeypatch):
    seen = []
    made = (Outcome(), nn.Identity())
    monkeypatch.setattr(training, "_train", lambda cell, checkpoints: seen.append(torch.get_num_threads()) or made)
    torch.set_num_threads(2)
    train_cell(cells[0])
    assert seen == [1]
    assert seen == [environment().threads]
    assert torch.get_num_threads() == 2


# Law 9: workers cannot matter.


@pytest.mark.slow
def test_law_9_one_worker_or_two(config, finished, tmp_path):
    other = run_experiment(config, tmp_path / "two", workers=2)
    expected = [without_time(r) for r in finished[1].results.records]
    assert [without_time(r) for r in other.results.records] == expected


# Law 8 at the size of a cell, and running again.


def fails_if_run(cell, keep_weights, checkpoints):
    pytest.fail(f"{cell.id} ran again")


def test_a_second_run_redoes_nothing(config, finished, monkeypatch):
    folder, before = finished
    monkeypatch.setattr(TRAIN_CELL, fails_if_run)
    again = run_experiment(config, folder, workers=1)
    assert again.kept == 8
    assert again.results == before.results


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(config, finished, tmp_path, monkeypatch):
    folder, count = tmp_path / "killed", 0

    def killed_at_the_fourth(cell, keep_weights, checkpoints):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return train_cell(cell, keep_weights)

    monkeypatch.setattr(TRAIN_CELL, killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, folder, workers=1)
    assert len(list((folder / "cells").iterdir())) == 3
    (folder / "cells" / ".mas-seed1.json-left").write_text("{")  # as of a crash while it was written
    monkeypatch.setattr(TRAIN_CELL, train_cell)
    outcome = run_experiment(config, folder, workers=1)
    assert outcome.kept == 3
    expected = [without_time(r) for r in finished[1].results.records]
    assert [without_time(r) for r in outcome.results.records] == expected


MORE = (
    "strategies=[{name: l2}, {name: naive}, {name: joint}, {name: mas}, {name: ewc, labels: sampled, max_samples: 20}]"
)


@pytest.mark.parametrize(
    ("change", "new"),
    [("seeds=3", ["naive-seed2", "joint-seed2", "mas-seed2", "ewc-seed2"]), (MORE, ["l2-seed0", "l2-seed1"])],
)
def test_more_seeds_or_strategies_keep_what_is_there(change, new, config_file, finished, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(TRAIN_CELL, lambda cell, keep_weights, checkpoints: ran.append(cell.id) or made_up())
    folder = tmp_path / "copy"
    for path in finished[0].rglob("*.*"):
        target = folder / path.relative_to(finished[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"is of another config: .* add cells to it with --extend, or choose another"):
        run_experiment(load_config(config_file, [change]), folder, workers=1)
    outcome = run_experiment(load_config(config_file, [change]), folder, workers=1, extend=True)
    assert outcome.kept == 8
    assert ran == new


def test_an_error_in_one_cell_does_not_stop_the_others(config, tmp_path, monkeypatch):
    def breaks(cell, keep_weights, checkpoints):
        if cell.id == "mas-seed1":
            raise ZeroDivisionError("oh")
        return made_up()

    monkeypatch.setattr(TRAIN_CELL, breaks)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert outcome.failed == ["mas-seed1: ZeroDivisionError: oh"]
    assert len(outcome.results.records) == 7
    assert not (tmp_path / "r" / "cells" / "mas-seed1.json").exists()


def test_progress_is_told_of_every_cell_as_it_ends(config, tmp_path, monkeypatch):
    def some_break(cell, keep_weights, checkpoints):
        if cell.seed == 1 and cell.label == "mas":
            raise ZeroDivisionError("oh")
        if cell.label == "ewc":
            return made_up(status="diverged", reason="loss is nan", seconds=2.25)
        return made_up(seconds=0.04)

    monkeypatch.setattr(TRAIN_CELL, some_break)
    events = []
    run_experiment(config, tmp_path / "r", workers=1, progress=events.append)
    assert events[0] == Started(tmp_path / "r", 0, 8)
    ended = [event for event in events if isinstance(event, CellEnded)]
    assert [str(event) for event in ended[:4]] == [
        "naive-seed0: finished, 0.0 s",
        "joint-seed0: finished, 0.0 s",
        "mas-seed0: finished, 0.0 s",
        "ewc-seed0: diverged (loss is nan), 2.2 s",
    ]
    assert str(ended[6]) == "mas-seed1: failed (ZeroDivisionError: oh)"


# Law 11: a blow-up is said.


@pytest.mark.parametrize("name", STRATEGIES)
def test_law_11_a_blow_up_ends_the_cell_as_diverged(name):
    fast = {"epochs": 1, "batch_size": 64, "lr": 1e30, "optimizer": "sgd"}
    outcome = train_cell(first_cell(name, training=fast)).outcome
    assert outcome.status == "diverged"
    assert np.isnan(outcome.final_acc())
    assert re.search(
        r"loss is (nan|inf) in experience 0, epoch 0, iteration \d|weights of .* not finite|output is not finite",
        outcome.reason,
    )


class ReturnsNaN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Linear(64, 4)

    def forward(self, x):
        return self.features(x.flatten(1)) * torch.nan


def test_law_11_a_model_that_returns_nan_is_diverged_before_it_is_scored(cells, monkeypatch):
    monkeypatch.setattr(MODEL_MODELS["mlp"], "entry", staticmethod(lambda shape, **options: ReturnsNaN()))
    outcome = train_cell(cells[0]).outcome
    assert outcome.status == "diverged"
    assert outcome.reason == "the network's output is not finite in evaluation"
    assert outcome.untrained is None
    assert outcome.accuracy == [[None, None], [None, None]]


# What a cell measures.


def test_accuracies_are_those_of_a_plain_evaluation(cells):
    """Train by hand with the same streams, test with plain torch."""
    cell = cells[0]
    benchmark = build_benchmark(cell.settings, cell.seed)
    strategy = build_strategy(cell.settings, benchmark, cell.seed)

    def test():
        strategy.model.eval()
        found = []
        for e in benchmark.test_stream:
            x, y, _ = zip(*(e.dataset[i] for i in range(len(e.dataset))), strict=True)
            found.append((strategy.model(torch.stack(x)).argmax(1) == torch.tensor(y)).float().mean().item())
        return found

    expected = [test()]
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        expected.append(test())
    outcome = train_cell(cell).outcome
    assert np.array([outcome.untrained, *outcome.accuracy]) == pytest.approx(np.array(expected), abs=1e-6)


def test_the_optimizer_is_reset_or_not_as_the_config_says(config_file):
    def accuracy(reset):
        config = load_config(config_file, [f"training.reset_optimizer={reset}"])
        return train_cell(Plan(config).every_cell()[0]).outcome.accuracy

    with_reset, without = accuracy("true"), accuracy("false")
    assert with_reset[0] == without[0]
    assert with_reset[1] != without[1]


def test_task_scenario_trains_one_head_per_task(config_file):
    config = load_config(config_file, ["benchmark.scenario=task", "benchmark.experiences=3"])
    cells = Plan(config).every_cell()
    for cell in cells[:4]:
        outcome = train_cell(cell).outcome
        assert outcome.status == "finished"
        assert outcome.matrix()[-1].shape == (3,)
    strategy = build_strategy(cells[0].settings, split(experiences=3, scenario="task"), 0)
    assert [head.out_features for head in strategy.model.heads] == [4, 3, 3]


# Devices.


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 0, r"training\.device: found 'cuda', but torch sees no GPU here; set training\.device=cpu$"),
        ("cuda:1", 0, r"training\.device: found 'cuda:1', but torch sees no GPU here; set training\.device=cpu$"),
        ("cuda:7", 2, r"training\.device: found 'cuda:7', but the last GPU here is cuda:1; set that$"),
        ("cuda:2", 2, r"training\.device: found 'cuda:2', but the last GPU here is cuda:1; set that$"),
        ("mps", 0, r"training\.device: found 'mps', but torch cannot use it here; set training\.device=cpu$"),
    ],
)
def test_a_device_that_is_not_there_is_one_clear_error_and_writes_nothing(
    device, gpus, message, config_file, tmp_path, monkeypatch
):
    config = load_config(config_file, [f"training.device={device}"])  # before: an optimizer asks for the GPU too
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        run_experiment(config, tmp_path / "r", workers=1)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "gpu", "tpu", "cuda:-1", "CPU"])
def test_what_is_no_device_is_refused(device, config_file):
    with pytest.raises(UserError, match=r"training\.device: found .*; allowed: cpu, cuda, cuda:1, mps, auto$"):
        load_config(config_file, [f"training.device='{device}'"])


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_gpu_or_else_the_cpu(cuda, mps, expected, config_file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    config = load_config(config_file, ["training.device=auto"], try_data=False)
    assert config.training.device == expected
    assert config.plain()["training"]["device"] == expected  # what was used is kept with the results


def test_the_number_of_cores_is_known():
    assert cores() >= 1


def test_the_record_of_a_cell_is_plain_json(finished):
    for path in (finished[0] / "cells").iterdir():
        data = json.loads(path.read_text())
        assert data["version"] == 2
        assert path.stem == f"{data['label']}-seed{data['seed']}"
