"""A cell that was killed and resumed ends as one that was not, to the bit: for every strategy and place to stop."""

import contextlib
import io
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from mas.experiments import continual
from mas.experiments.checkpoints import Checkpoints, CheckpointWarning
from mas.experiments.context import CellContext
from mas.experiments.provenance import identity
from mas.experiments.stopping import StoppedError, _Flag, ending_when_asked, stopping_on_signals
from mas.experiments.training import train_cell
from mas.strategies import STRATEGIES
from tests.experiments.builders import first_cell


class KilledError(BaseException):
    """A process that was killed."""


class KillingCheckpoints(Checkpoints):
    """Saves whenever it can, and dies after one save."""

    def __init__(self, folder, die_after):
        super().__init__(folder, interval=0.0, share=float("inf"))
        self.left = die_after

    def save(self, state):
        super().save(state)
        self.left -= 1
        if not self.left:
            raise KilledError


def cell_of(strategy, *, stream=None, **changes):
    dataset = {"name": "digits", "train": 240, "test": 40}
    return first_cell(
        strategy,
        benchmark={"stream": "split", "dataset": dataset, "experiences": 3, **(stream or {})},
        training={"epochs": 2, "batch_size": 32, **changes.pop("training", {})},
        **changes,
    )


def assert_same(found, expected):
    assert found.outcome.untrained == expected.outcome.untrained
    assert np.array_equal(found.outcome.matrix(), expected.outcome.matrix(), equal_nan=True)
    assert found.outcome.probes == expected.outcome.probes
    assert found.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert torch.equal(found.weights[name], tensor), name


def train_killed(cell, folder, kills):
    """Train a cell that is killed after so many saves, one after another, and then to the end; return it."""
    with pytest.raises(KilledError):
        train_cell(cell, True, CellContext(KillingCheckpoints(folder, kills[0])))
    for die_after in kills[1:]:
        try:
            return train_cell(cell, True, CellContext(KillingCheckpoints(folder, die_after)))
        except KilledError:
            continue
    return train_cell(cell, True, CellContext(Checkpoints(folder)))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("kills", [[2], [3], [3, 1, 3, 2]], ids=str)
def test_a_killed_cell_ends_as_one_that_was_not(name, kills, tmp_path):
    cell = cell_of(name, training={"optimizer": "adam"})
    expected = train_cell(cell, True)
    found = train_killed(cell, tmp_path, kills)
    assert_same(found, expected)


CHANGES = {
    "growing heads": {"model": {"name": "mlp", "hidden": [8], "head": "growing"}, "scenario": "class"},
    "a head each": {"scenario": "task"},
    "batch norm": {"model": {"name": "mlp", "hidden": [8], "norm": "batch"}},
    "an optimizer that goes on": {"training": {"optimizer": "sgd", "momentum": 0.9, "reset_optimizer": False}},
    "a schedule": {"training": {"optimizer": "adam", "schedule": {"name": "exponential"}}},
    "augmentation": {"augment": "crop"},
    "a deficit": {"deficit": {"name": "blur", "end": 3}},
    "probes": {
        "probes": [
            {"name": "fisher_trace", "max_samples": 50, "labels": "sampled"},
            {"name": "accuracy", "unit": "iterations", "every": 2, "data": ["test"]},
        ]
    },
}


@pytest.mark.parametrize("kills", [[3], [6, 2, 2]], ids=str)
@pytest.mark.parametrize("what", CHANGES)
def test_every_part_of_a_cell_is_resumed(what, kills, tmp_path):
    changes = dict(CHANGES[what])
    stream = {key: changes.pop(key) for key in ("scenario", "augment") if key in changes}
    cell = cell_of({"name": "ewc", "labels": "sampled", "lam": 10.0}, stream=stream, **changes)
    expected = train_cell(cell, True)
    assert_same(train_killed(cell, tmp_path, kills), expected)


def test_strengths_that_are_chosen_continually_are_resumed(tmp_path):
    lam = {"select": "continual", "start": 100.0, "decay": 0.1}
    cell = cell_of({"name": "mas", "lam": lam}, selection={"seeds": [7], "validation": 0.2})
    expected = train_cell(cell, True)
    found = train_killed(cell, tmp_path, [2, 5])
    assert_same(found, expected)
    strengths = [[(one.strength, one.accuracy) for one in tries] for tries in expected.outcome.tries]
    assert [[(one.strength, one.accuracy) for one in tries] for tries in found.outcome.tries] == strengths


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    cell = cell_of("mas")
    expected = train_cell(cell, True)
    with pytest.raises(KilledError):
        train_cell(cell, True, CellContext(KillingCheckpoints(tmp_path, 6)))
    older, newest = sorted(tmp_path.glob("*.pt"))
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    with pytest.warns(CheckpointWarning, match=f"{newest.name}: is damaged"):
        found = train_cell(cell, True, CellContext(Checkpoints(tmp_path)))
    assert_same(found, expected)
    assert older.name == "4.pt"


def test_without_a_whole_checkpoint_a_cell_begins_anew(tmp_path):
    cell = cell_of("naive")
    (tmp_path / "3.pt").write_bytes(b"")
    with pytest.warns(CheckpointWarning):
        found = train_cell(cell, True, CellContext(Checkpoints(tmp_path)))
    assert_same(found, train_cell(cell, True))


def test_checkpoints_hold_plain_data(tmp_path):
    with pytest.raises(KilledError):
        train_cell(cell_of("replay"), False, CellContext(KillingCheckpoints(tmp_path, 5)))
    for path in tmp_path.iterdir():
        torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)


def test_a_cell_that_is_asked_to_stop_saves_and_stops(tmp_path, monkeypatch):
    cell = cell_of("mas")
    expected = train_cell(cell, True)
    monkeypatch.setattr("mas.experiments.resuming.stop_requested", lambda: True)
    with pytest.raises(StoppedError):
        train_cell(cell, True, CellContext(Checkpoints(tmp_path)))
    assert list(tmp_path.glob("*.pt"))
    monkeypatch.undo()
    assert_same(train_cell(cell, True, CellContext(Checkpoints(tmp_path))), expected)


def test_checkpoints_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("mas.experiments.checkpoints.time.perf_counter", lambda: now)
    checkpoints = Checkpoints(tmp_path, interval=30.0, share=0.02)

    def state():
        nonlocal now
        now += 1.0  # a second to save
        return {}

    assert not checkpoints.is_due(within_epoch=False)  # what is done in a moment saves nothing
    now += 2.5
    assert checkpoints.is_due(within_epoch=False)
    assert not checkpoints.is_due(within_epoch=True)
    checkpoints.save(state)
    now += 49.0
    assert not checkpoints.is_due(within_epoch=False)
    now += 1.0
    assert checkpoints.is_due(within_epoch=False)
    assert checkpoints.is_due(within_epoch=True)


def test_strengths_that_were_tried_are_not_tried_again(tmp_path, monkeypatch):
    lam = {"select": "continual", "start": 100.0, "decay": 0.5, "drop": 0.0}
    cell = cell_of({"name": "mas", "lam": lam}, selection={"seeds": [7], "validation": 0.2})
    made = []
    a_try = continual._try
    monkeypatch.setattr(continual, "_try", lambda strategy, lam, of: made.append(lam) or a_try(strategy, lam, of))
    expected = train_cell(cell, True)
    number = len(made)
    assert number > 4
    made.clear()
    for _ in range(number):  # killed after each try
        with contextlib.suppress(KilledError):
            found = train_cell(cell, True, CellContext(KillingTries(tmp_path)))
    found = train_cell(cell, True, CellContext(Checkpoints(tmp_path)))
    assert len(made) == number
    assert_same(found, expected)


class KillingTries(Checkpoints):
    """Saves whenever it can, and dies when it saves a strength that was tried for the first time."""

    def __init__(self, folder):
        super().__init__(folder, interval=0.0, share=float("inf"))

    def save(self, state):
        before = self.newest()
        super().save(state)
        tries = self.newest()["tries"]
        if tries and (before is None or len(tries) > len(before["tries"])):
            raise KilledError


def test_a_stop_within_a_try_keeps_the_tries_before_it(tmp_path, monkeypatch):
    lam = {"select": "continual", "start": 100.0, "decay": 0.5, "drop": 0.0}
    cell = cell_of({"name": "mas", "lam": lam}, selection={"seeds": [7], "validation": 0.2})
    expected = train_cell(cell, True)
    a_try = continual._try

    def stopping_try(strategy, lam, accuracy_of):
        if lam == 50.0:  # the third
            monkeypatch.setattr("mas.experiments.resuming.stop_requested", lambda: True)
        return a_try(strategy, lam, accuracy_of)

    monkeypatch.setattr(continual, "_try", stopping_try)
    with pytest.raises(StoppedError):
        train_cell(cell, True, CellContext(Checkpoints(tmp_path)))
    assert [one["strength"] for one in Checkpoints(tmp_path).newest()["tries"]] == [0.0, 100.0]
    monkeypatch.undo()
    assert_same(train_cell(cell, True, CellContext(Checkpoints(tmp_path))), expected)


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path):
    with pytest.raises(KilledError):
        train_cell(cell_of("mas"), True, CellContext(KillingCheckpoints(tmp_path, 5)))
    before = sorted(path.name for path in tmp_path.iterdir())
    other = cell_of("mas", training={"lr": 0.3})
    with pytest.warns(CheckpointWarning, match="of other settings or another version"):
        found = train_cell(other, True, CellContext(Checkpoints(tmp_path, of=identity(other))))
    assert before == ["3.pt", "4.pt"]
    assert_same(found, train_cell(other, True))


def test_work_that_does_not_look_at_the_flag_is_ended_after_the_patience(monkeypatch):
    monkeypatch.setattr("mas.experiments.stopping.PATIENCE", 0.2)
    monkeypatch.setattr("mas.experiments.stopping._flag", _Flag())

    def work():
        with ending_when_asked():
            while time.monotonic() < begun + 10:
                torch.zeros(10).sum()

    begun = time.monotonic()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with stopping_on_signals(lambda: None), pytest.raises(StoppedError):
        work()
    assert 0.3 <= time.monotonic() - begun < 2
    time.sleep(0.7)  # the timer is off: nothing is raised afterwards


def test_without_a_stop_nothing_is_ended():
    with ending_when_asked():
        time.sleep(0.05)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
