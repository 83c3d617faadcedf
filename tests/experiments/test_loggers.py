"""What loggers write, read back with the real packages; they change no result and stop no run."""

import errno
import json
import random
import struct
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mas import experiments
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import LoggerWarning, UserError
from mas.experiments.events import CellAt, CellEnded, CellStarted, CellTested, EpochEnded, Started
from mas.experiments.loggers import LOGGERS
from mas.experiments.loggers.json_lines import JsonLines
from mas.experiments.loggers.telling import telling
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from tests.experiments.builders import first_cell

CONFIG = {
    "experiment": "forgetting",
    "benchmark": {"dataset": "digits", "experiences": 2},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 2, "batch_size": 128},
    "strategies": [{"name": "naive"}, {"name": "mas", "lam": 1.0}],
    "seeds": 1,
}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def run_with(folder, *loggers, **changes):
    """Run the config with loggers; return the run, and the events that were told."""
    events = []
    config = CONFIG | changes | {"logging": list(loggers)}
    made = experiments.run(config, output=folder, workers=1, progress=events.append)
    return made, events


def of(kind, events, name):
    return [event for event in events if isinstance(event, kind) and event.cell.id == name]


# The real packages.


def test_json_lines_hold_one_object_for_each_event(tmp_path):
    _, events = run_with(tmp_path / "r", "jsonl")
    lines = [json.loads(line) for line in (tmp_path / "r/logs/events.jsonl").read_text().splitlines()]
    expected = [event for event in events if not isinstance(event, CellAt)]
    assert len(lines) == len(expected) == 1 + 2 * (1 + 4 + 3 + 1)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert lines[0] | {"time": ""} == {
        "time": "",
        "event": "started",
        "folder": str(tmp_path / "r"),
        "kept": 0,
        "total": 2,
        "workers": 1,
    }
    (first, *_) = of(EpochEnded, events, "naive-seed0")
    (epoch, *_) = [line for line in lines if line["event"] == "epoch_ended"]
    assert epoch == {
        "time": epoch["time"],
        "event": "epoch_ended",
        "cell": "naive-seed0",
        "experience": 0,
        "epoch": 0,
        "epochs_done": 1,
        "loss": first.loss,
        "accuracy": first.accuracy,
    }
    tested = [line for line in lines if line["event"] == "cell_tested" and line["cell"] == "mas-seed0"]
    assert [line["accuracies"] for line in tested] == [list(e.accuracies) for e in of(CellTested, events, "mas-seed0")]
    assert [line["status"] for line in lines if line["event"] == "cell_ended"] == ["finished", "finished"]


def test_a_second_run_adds_to_the_lines(tmp_path):
    run_with(tmp_path / "r", "jsonl")
    path = tmp_path / "r/logs/events.jsonl"
    before = path.read_text()
    path.write_text(before + '{"time": "cut o')
    run_with(tmp_path / "r", "jsonl")
    after = path.read_text()
    assert after.startswith(before)
    *_, last = after.splitlines()
    assert (json.loads(last)["event"], json.loads(last)["kept"]) == ("started", 2)


def test_what_is_not_finite_is_null(tmp_path):
    cell = first_cell("naive")
    logger = JsonLines(tmp_path)
    logger.note(EpochEnded(cell, 0, 0, 1, loss=float("nan"), accuracy=0.5))
    logger.note(CellTested(cell, 0, (float("inf"), 0.5)))
    logger.close()
    first, second = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert (first["loss"], first["accuracy"]) == (None, 0.5)
    assert second["accuracies"] == [None, 0.5]


def test_tensorboard_reads_its_files(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, events = run_with(tmp_path / "r", "tensorboard")
    folders = sorted(path.name for path in (tmp_path / "r/logs/tensorboard").iterdir())
    assert folders == ["mas-seed0", "naive-seed0"]
    for name in folders:
        found = reader.EventAccumulator(str(tmp_path / "r/logs/tensorboard" / name)).Reload()
        tags = ["test/accuracy_0", "test/accuracy_1", "test/mean_accuracy", "training/accuracy", "training/loss"]
        assert sorted(found.Tags()["scalars"]) == tags
        epochs = of(EpochEnded, events, name)
        assert [(s.step, s.value) for s in found.Scalars("training/loss")] == [
            (e.epochs_done, pytest.approx(e.loss, rel=1e-6)) for e in epochs
        ]
        assert [s.value for s in found.Scalars("training/accuracy")] == pytest.approx([e.accuracy for e in epochs])
        tested = of(CellTested, events, name)
        assert [(s.step, s.value) for s in found.Scalars("test/accuracy_1")] == [
            (e.trained_on + 1, pytest.approx(e.accuracies[1], rel=1e-6)) for e in tested
        ]
        means = [sum(e.accuracies) / 2 for e in tested]
        assert [s.value for s in found.Scalars("test/mean_accuracy")] == pytest.approx(means)
        (text,) = found.Tensors("status/text_summary")
        assert text.tensor_proto.string_val[0] == b"finished"


@pytest.mark.slow
def test_weights_and_biases_keeps_its_runs_offline(tmp_path, offline):
    pytest.importorskip("wandb")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LoggerWarning)
        _, events = run_with(tmp_path / "r", {"name": "wandb", "project": "of-a-test"})
    found = {}
    for path in (tmp_path / "r/logs/wandb").glob("offline-run-*/*.wandb"):
        run, history, summary = wandb_records(path)
        assert (run.project, run.run_group) == ("of-a-test", "r")
        found[run.display_name] = (
            history,
            summary,
            {item.key: json.loads(item.value_json) for item in run.config.update},
        )
    assert sorted(found) == ["mas-seed0", "naive-seed0"]
    for name, (history, summary, config) in found.items():
        epochs = [row for row in history if "training/loss" in row]
        assert [(row["epoch"], row["training/loss"], row["training/accuracy"]) for row in epochs] == [
            (e.epochs_done, e.loss, e.accuracy) for e in of(EpochEnded, events, name)
        ]
        tests = [row for row in history if "trained_on" in row]
        assert [(row["trained_on"], row["test/accuracy_0"]) for row in tests] == [
            (e.trained_on, e.accuracies[0]) for e in of(CellTested, events, name)
        ]
        assert summary["status"] == "finished"
        assert (config["seed"], config["strategy"]["name"]) == (0, name.partition("-")[0])


def wandb_records(path):
    """Return the run, the rows of its history and its summary, as W&B's own messages read them from a file."""
    from wandb.proto import wandb_internal_pb2

    run, history, summary = None, [], {}
    for data in logged_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        elif kind == "summary":
            updates = record.summary.update
            summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
    return run, history, summary


def logged_records(data):
    """Yield the records of a log in the form of LevelDB: blocks of 32 KiB, with parts of records in them."""
    place, parts = 7, b""  # after the header of the file
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # too little for the header of a part
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


# No logger changes a result.


class Draws:
    """A logger of the user's own that draws from every global random stream."""

    def __init__(self, folder):
        self.folder = folder

    def note(self, event):
        torch.rand(3)
        np.random.rand(3)
        random.random()  # noqa: S311

    def close(self):
        pass


OWN = {"name": "import", "function": f"{__name__}:Draws"}


@pytest.mark.parametrize("logger", ["jsonl", "tensorboard", OWN], ids=["jsonl", "tensorboard", "own"])
def test_law_3_a_run_with_a_logger_ends_as_one_without(tmp_path, logger, monkeypatch):
    monkeypatch.setattr("mas.experiments.progress.Interval.is_over", lambda self: True)
    strategies = [{"name": "naive"}, {"name": "mas", "lam": 1.0}, {"name": "agem"}]
    benchmark = {"dataset": "digits", "experiences": 2, "augment": "crop"}  # it draws in each step
    changes = {"strategies": strategies, "benchmark": benchmark, "save_model": True}
    with_one, _ = run_with(tmp_path / "a", logger, **changes)
    without, _ = run_with(tmp_path / "b", **changes)
    assert with_one.results.equals(without.results)
    for path in sorted((tmp_path / "a/models").iterdir()):
        first, second = (torch.load(p, weights_only=True) for p in (path, tmp_path / "b/models" / path.name))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_loggers_are_no_part_of_a_cell():
    plain = Plan(load_config(CONFIG, try_data=False)).every_cell()
    logged = Plan(load_config(CONFIG | {"logging": ["jsonl", "wandb"]}, try_data=False)).every_cell()
    assert logged == plain
    assert [cell.settings.plain() for cell in logged] == [cell.settings.plain() for cell in plain]


def test_without_loggers_there_are_no_logs(tmp_path):
    run_with(tmp_path / "r")
    assert not (tmp_path / "r/logs").exists()


# What goes wrong.


class Fails:
    """A logger that fails at some event."""

    def __init__(self, kind, error=None):
        self.kind = kind
        self.error = error or OSError(errno.ENOSPC, "No space left on device")
        self.told = []

    def note(self, event):
        self.told.append(event)
        if isinstance(event, self.kind):
            raise self.error

    def close(self):
        raise self.error


def test_a_logger_that_fails_is_left_out_with_one_warning():
    cell = first_cell("naive")
    failing, good, seen = Fails(CellTested), Fails(()), []
    good.close = lambda: None
    events = [CellStarted(cell), CellTested(cell, -1, ()), EpochEnded(cell, 0, 0, 1), CellEnded(cell, "finished")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with telling({"tensorboard": lambda: failing, "jsonl": lambda: good}, seen.append) as tell:
            for event in events:
                tell(event)
    assert [str(warning.message) for warning in caught] == [
        "logging: tensorboard failed and is left out from now on (OSError: [Errno 28] No space left on device); "
        "the run goes on"
    ]
    assert failing.told == events[:2]
    assert good.told == events
    assert seen == events


def test_a_run_goes_on_where_the_disk_is_full_for_logs(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/config.yaml").write_text("")
    (tmp_path / "r/logs").write_text("a file, where a folder should be")
    with pytest.warns(LoggerWarning, match=r"logging: jsonl failed and is left out from now on \(.*Error: .*logs'?\)"):
        made, _ = run_with(tmp_path / "r", "jsonl")
    assert len(made.outcomes.records) == 2


def test_a_logger_that_fails_at_its_end_is_a_warning_too():
    warned = pytest.warns(LoggerWarning, match="logging: wandb failed")
    with warned, telling({"wandb": lambda: Fails(())}, lambda event: None) as tell:
        tell(Started(Path("r"), 0, 1))


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_said_before_anything_is_trained(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        run_with(tmp_path / "r", "jsonl", package)
    (line,) = error.value.lines
    assert line.startswith(f"logging: found {package}, which cannot be imported (")
    assert line.endswith(f"; run: pip install {package}")
    assert not (tmp_path / "r").exists()


def test_runs_of_cells_that_were_stopped_are_closed(tmp_path):
    closed = Counter()

    class Counts(Fails):
        def close(self):
            closed["times"] += 1

    with pytest.raises(KeyboardInterrupt), telling({"x": lambda: Counts(())}, lambda event: None):
        raise KeyboardInterrupt
    assert closed["times"] == 1


# The config.


@pytest.mark.parametrize(
    ("logging", "line"),
    [
        (["jsonl", "tensorbord"], "logging[1].name: found 'tensorbord', did you mean 'tensorboard'?; allowed: "),
        ([{"name": "wandb", "projekt": "x"}], "logging[0].projekt: unknown key, did you mean 'project'?; allowed: "),
        ([{"name": "wandb", "mode": "of"}], "logging[0].mode: found 'of'; allowed: online, offline, disabled"),
        (["jsonl", "jsonl"], "logging: found ['jsonl', 'jsonl']; allowed: each once"),
        ("jsonl", "logging: found 'jsonl'; allowed: "),
    ],
)
def test_a_mistake_is_said_at_its_place(logging, line):
    with pytest.raises(UserError) as error:
        load_config(CONFIG | {"logging": logging}, try_data=False)
    assert error.value.lines[0].startswith(line)


def test_loggers_are_read_with_their_options(tmp_path):
    config = load_config(CONFIG | {"logging": ["jsonl", {"name": "wandb", "project": "x"}]}, try_data=False)
    jsonl, wandb = config.logging
    assert (jsonl.name, jsonl.arguments()) == ("jsonl", {})
    assert wandb.arguments() == {"project": "x", "entity": None, "mode": None}
    assert load_config(config.plain(), try_data=False).logging == config.logging
    assert Source(CONFIG).data.get("logging") is None


def test_values_of_loggers_are_not_chosen_by_acc():
    changed = CONFIG | {"logging": [{"name": "wandb", "project": {"select": ["a", "b"]}}]}
    with pytest.raises(UserError, match="nothing to choose by ACC"):
        load_config(changed, try_data=False)


def test_every_logger_has_a_line_of_explanation():
    for logger in LOGGERS.values():
        assert len(logger.__doc__.splitlines()[0].split()) > 5
    assert replace(first_cell("naive"), seed=1).seed == 1
