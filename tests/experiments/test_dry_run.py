"""A dry run says what a run would do and about how long it takes; it trains and writes nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mas.cli import app
from mas.experiments.dry_run import dry_run
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.store import Store
from tests.experiments.builders import made_up

TEXT = """\
experiment: forgetting
benchmark: {experiences: 2}
model: {name: mlp, hidden: [4]}
training: {epochs: 1, batch_size: 128}
strategies: [{name: naive}, {name: mas, lam: 0.1}]
seeds: 3
"""
SECONDS = {"naive-seed0": 10.0, "naive-seed1": 20.0, "mas-seed0": 60.0}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(TEXT)

    def train(cell, keep_weights, context):
        pytest.fail("trained")

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", train)
    return tmp_path


def run_dry(*arguments):
    return CliRunner().invoke(app, ["run", "c.yaml", "--dry-run", *arguments], env={"COLUMNS": "200"})


def finish(seconds):
    """Write cells into the folder of the config, with the seconds that they took."""
    config = load_config("c.yaml", try_data=False)
    store = Store(Path("runs/c"))
    store.claim(config.plain(), {}, trains=True)
    for cell in Plan(config).every_cell():
        if cell.id in seconds:
            store.save(cell, made_up(seconds=seconds[cell.id]).outcome)


def test_without_finished_cells_there_is_no_estimate_and_no_folder(here):
    done = run_dry()
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        *("naive-seed0: to train", "mas-seed0: to train", "naive-seed1: to train", "mas-seed1: to train"),
        *("naive-seed2: to train", "mas-seed2: to train"),
        "0 cells finished, 6 to train; how long that takes can be estimated once a cell is finished",
    ]
    assert [path.name for path in here.iterdir()] == ["c.yaml"]


def test_time_is_estimated_by_label(here):
    """Left are a naive cell of 15 s and two of MAS of 60 s each: 135 s, with two workers 68 s."""
    finish(SECONDS)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    lines = run_dry("--workers", "2").output.splitlines()
    assert lines[:3] == ["naive-seed0: finished", "mas-seed0: finished", "naive-seed1: finished"]
    assert lines[-1] == "3 cells finished, 3 to train: about 68 s with 2 workers, from the times of finished cells"
    assert "135 s" not in run_dry("--workers", "1").output  # 135 s are told in minutes
    assert "about 2 min with 1 worker," in run_dry("--workers", "1").output
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_labels_without_a_finished_cell_take_the_mean_of_all(here):
    finish({"naive-seed0": 10.0, "naive-seed1": 20.0})
    found = dry_run(load_config("c.yaml", try_data=False), Path("runs/c"), workers=1)
    assert found.seconds_left() == pytest.approx(15.0 + 3 * 15.0)
    more = dry_run(load_config("c.yaml", try_data=False), Path("runs/c"), workers=100)
    assert more.seconds_left() == pytest.approx(60.0 / 4)  # no more workers than cells


def test_a_finished_folder_has_nothing_to_estimate(here):
    finish({f"{name}-seed{seed}": 1.0 for name in ("naive", "mas") for seed in range(3)})
    assert run_dry().output.splitlines()[-1] == "6 cells finished, 0 to train"


def test_mistakes_are_told_as_in_a_run(here):
    finish(SECONDS)
    done = run_dry("--set", "strategies.1.lam=5")
    assert done.exit_code == 2
    assert "mas-seed0" in done.output or "strategy.lam is 0.1 there and 5.0 here" in done.output
    assert run_dry("--set", "training.epoch=5").exit_code == 2


def test_a_sweep_is_listed_by_its_values(here):
    lines = run_dry("--set", "sweep.strategies.mas.lam=[1, 10]", "--set", "seeds=1").output.splitlines()
    assert lines[:-1] == ["naive-seed0: to train", "mas,lam=1-seed0: to train", "mas,lam=10-seed0: to train"]
