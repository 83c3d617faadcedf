"""Folders in order: status, clean, verify, merge, and extending a run."""

import json
import os
import re
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import torch
from typer.testing import CliRunner

from mas.cli import app
from mas.experiments import run
from mas.experiments.errors import UserError
from mas.experiments.files import write_whole
from mas.experiments.locks import STALE, CellLocks
from mas.experiments.maintenance.clean import clean
from mas.experiments.maintenance.merge import merge
from mas.experiments.maintenance.status import status
from mas.experiments.maintenance.verify import verify
from mas.experiments.plan import Plan
from mas.experiments.provenance import Provenance, config_hash, environment
from mas.experiments.read_config import load_config
from mas.experiments.runner import run_experiment
from mas.experiments.store import Store
from tests.experiments.builders import TEXT, made_up

RUN_CELL = "mas.experiments.engines.task.run_cell"
SELECTING = TEXT.replace("lam: 1.0", "lam: {select: [0.1, 1.0]}")
MB = 2**20


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SELECTING)
    return path


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    """A folder of cells that were really trained, with their weights."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    run(config_file, ["save_model=true"], output=folder, workers=1)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def begun(config_file, tmp_path):
    """A folder of a config whose cells are not begun."""
    config = load_config(config_file, ["seeds=1"], try_data=False)
    store = Store(tmp_path / "begun")
    store.claim(config.plain(), {}, trains=False)
    return store, {cell.id: cell for cell in Plan(config).every_cell()}


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mas(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Status


def test_status_tells_every_state_apart(begun):
    store, cells = begun
    naive, joint, mas_ = (cells[f"{name}-seed0"] for name in ("naive", "joint", "mas"))
    made = Provenance(config_hash(naive.settings), {}, environment(), "2026-01-01T00:00:00", 2.5, 300 * MB)
    store.save(naive, made_up(seconds=2.0).outcome, provenance=made)
    store.save(joint, made_up(status="diverged", reason="loss is nan", seconds=1.5).outcome)
    store.note_failure(mas_, "ValueError: oh")
    (store.folder / "cells" / "ewc-seed0.json").write_text("{")
    tries = [name for name in cells if "~" in name]
    with CellLocks(store.folder) as locks:
        locks.take(tries[0])
        begun_at = (datetime.now(UTC) - timedelta(seconds=30)).isoformat()
        at = {"experience": 0, "experiences": 2, "epoch": 2, "epochs": 4, "share": 0.25, "begun": begun_at}
        locks.note(tries[0], at)
        locks.beat()
        write_whole(store.checkpoints(cells[tries[1]]) / "0.pt", b"x")
        found = {cell.id: cell for cell in status(store.folder).cells}
        line = status(store.folder).summary()
        shown = mas("status", store.folder).output
    states = {name: cell.state for name, cell in found.items()}
    assert states == {
        "naive-seed0": "done",
        "joint-seed0": "diverged",
        "mas-seed0": "failed",
        "ewc-seed0": "damaged",
        tries[0]: "running",
        tries[1]: "stopped",
        tries[2]: "waiting",
        tries[3]: "waiting",
    }
    assert (found["naive-seed0"].seconds, found["naive-seed0"].peak_memory) == (2.5, 300 * MB)
    assert found["joint-seed0"].detail == "loss is nan"
    assert found["mas-seed0"].detail == "ValueError: oh"
    detail = found[tries[0]].detail
    assert detail.startswith("experience 1/2, epoch 3/4, 25 %, about ")
    assert 85 <= float(re.search(r"about (\d+) s left", detail)[1]) <= 100  # 30 s are a quarter
    assert str(os.getpid()) in detail
    assert line == (
        f"{store.folder}: 8 cells: 1 done, 1 running, 1 stopped, 1 failed, 1 diverged, 1 damaged, 2 waiting; "
        "a cell took 2.0 s on average, 2.5 s at most, and 300 MB at most"
    )
    assert "ValueError: oh" in shown
    assert ("naive-seed0" in shown, tries[0] in shown) == (False, True)


def test_a_cell_whose_process_has_ended_is_not_running(begun):
    store, cells = begun
    name = next(iter(cells))
    locks = CellLocks(store.folder)
    locks.take(name)
    assert status(store.folder).counts() == {"running": 1, "waiting": 7}
    old = time.time() - 2 * STALE
    os.utime(store.folder / "locks" / f"{name}.json", (old, old))
    assert status(store.folder).counts() == {"waiting": 8}


def test_a_failed_cell_is_noted_until_it_is_finished(config_file, tmp_path, monkeypatch):
    def breaks(cell, keep_weights, context):
        if cell.id == "joint-seed0":
            raise ZeroDivisionError("oh")
        return made_up()

    monkeypatch.setattr(RUN_CELL, breaks)
    config = load_config(config_file, ["seeds=1"], try_data=False)
    run_experiment(config, tmp_path / "r", workers=1)
    assert Store(tmp_path / "r").failure("joint-seed0") == "ZeroDivisionError: oh"
    assert status(tmp_path / "r").counts() == {"done": 7, "failed": 1}
    monkeypatch.setattr(RUN_CELL, lambda cell, keep_weights, context: made_up())
    run_experiment(config, tmp_path / "r", workers=1)
    assert not list((tmp_path / "r" / "failed").iterdir())
    assert status(tmp_path / "r").counts() == {"done": 8}


@pytest.mark.parametrize("command", ["status", "clean", "verify"])
def test_a_folder_of_no_run_is_one_line(command, tmp_path):
    done = mas(command, tmp_path)
    assert done.exit_code == 2
    expected = f"error: {tmp_path}: holds no config.yaml; expected a folder that mas run has written"
    assert done.output.splitlines() == [expected]


# Clean


def litter(store, cells):
    """Put into a folder what runs leave that were killed; return the files."""
    name, other, *_ = cells
    write_whole(store.checkpoints(cells[name]) / "0.pt", b"12345")
    write_whole(store.checkpoints(cells[name]) / "1.pt", b"12345")
    store.note_failure(cells[other], "oh")
    (store.folder / "cells").mkdir(exist_ok=True)
    (store.folder / "cells" / f".{name}.json-ab12_xyz").write_text("{")
    (store.folder / ".config.yaml-ab12_xyz").write_text("{")
    CellLocks(store.folder).take(name)
    lock = store.folder / "locks" / f"{name}.json"
    os.utime(lock, (time.time() - 2 * STALE,) * 2)


def test_clean_removes_what_no_result_depends_on_and_nothing_else(begun):
    store, cells = begun
    finished = cells["naive-seed0"]
    store.save(finished, made_up().outcome, {"w": torch.ones(2)})
    store.write("results.csv", "a")
    for own in (".gitignore", ".notes-abcdefgh", "notes.txt"):
        (store.folder / own).write_text("mine")
    before = content(store.folder)
    litter(store, cells)
    littered = content(store.folder)
    told = mas("clean", store.folder, "--dry-run").output.splitlines()
    assert content(store.folder) == littered
    assert told[0] == "checkpoints: 2 files, " + told[0].split(", ")[1]
    assert [line.partition(":")[0] for line in told[:-1]] == [
        "checkpoints",
        "stale locks",
        "notes on failed cells",
        "temporary files",
    ]
    size = sum(len(data) for path, data in littered.items() if path not in before and path.suffix != ".lock")
    assert told[-1] == f"would free {size:,} bytes: nothing was removed"
    assert mas("clean", store.folder).output.splitlines() == [*told[:-1], f"freed {size:,} bytes"]
    after = content(store.folder)
    assert {path for path in after if path.suffix != ".lock"} == set(before)
    assert all(after[path] == before[path] for path in before)
    assert not (store.folder / "checkpoints").exists()
    assert mas("clean", store.folder).output == "freed 0 bytes\n"


def test_a_folder_in_use_is_not_cleaned(begun):
    store, cells = begun
    litter(store, cells)
    with CellLocks(store.folder) as locks:
        locks.take("joint-seed0")
        before = content(store.folder)
        message = f"is in use: process {os.getpid()} on .* trains joint-seed0; stop it first, or wait until it ends"
        with pytest.raises(UserError, match=message):
            clean(store.folder)
        assert content(store.folder) == before


def test_clean_does_not_follow_links_out_of_the_folder(begun, tmp_path):
    store, _ = begun
    elsewhere = tmp_path / "elsewhere"
    write_whole(elsewhere / "0.pt", b"12345")
    (store.folder / "checkpoints").symlink_to(elsewhere)
    assert clean(store.folder) == []
    assert (elsewhere / "0.pt").exists()


# Verify


def test_a_trained_folder_is_right_and_its_numbers_come_again(trained):
    before = content(trained)
    found = verify(trained, seed=0)
    assert found.lines()[-1] == f"{found.repeated}: was run again: its numbers are the same to the bit"
    assert (found.records, found.problems, found.difference) == (12, [], None)
    named = mas("verify", trained, "--cell", "ewc-seed1")
    assert named.exit_code == 0
    assert "12 records checked, problems found: 0" in named.output
    assert "ewc-seed1: was run again: its numbers are the same to the bit" in named.output
    changed = {path for path, data in content(trained).items() if before.get(path) != data}
    assert not changed


def test_the_cell_is_drawn_by_the_seed(trained, monkeypatch):
    monkeypatch.setattr("mas.experiments.maintenance.verify._repeat", lambda r, o, f: setattr(f, "repeated", r.cell.id))
    drawn = [verify(trained, seed=seed).repeated for seed in (*range(8), *range(8))]
    assert drawn[:8] == drawn[8:]
    assert len(set(drawn)) > 2


def test_a_number_that_was_changed_is_found(copy):
    path = copy / "cells" / "naive-seed0.json"
    data = json.loads(path.read_text())
    value = data["accuracy"][1][0]
    data["accuracy"][1][0] = value + 1e-15
    path.write_text(json.dumps(data))
    done = mas("verify", copy, "--cell", "naive-seed0")
    assert done.exit_code == 1
    assert "error: naive-seed0: was run again: accuracy.1 is" in done.output
    assert "the record was changed, or the cell is not deterministic" in done.output
    assert mas("verify", copy, "--cell", "joint-seed0").exit_code == 0


def test_where_the_environment_differs_it_is_said_to_be_the_reason(copy):
    path = copy / "cells" / "naive-seed0.json"
    data = json.loads(path.read_text())
    data["accuracy"][1][0] /= 2
    data["provenance"]["environment"] |= {"cpu_capability": "NEON", "threads": 3}
    path.write_text(json.dumps(data))
    lines = verify(copy, cell="naive-seed0").lines()
    at = lines.index("this may be why: results are the same to the bit only in the same environment")
    here = environment().cpu_capability
    assert lines[at + 1 : at + 3] == [f"instruction set: NEON there and {here} here", "threads: 3 there and 1 here"]


def test_weights_are_compared_to_the_bit(copy):
    path = copy / "models" / "naive-seed0.pt"
    weights = torch.load(path, weights_only=True)
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1e-7
    torch.save(weights, path)
    found = verify(copy, cell="naive-seed0")
    assert found.difference.place == f"weights.{name}"


def swap_names(folder):
    (folder / "cells" / "naive-seed0.json").rename(folder / "cells" / "naive-seed9.json")


def change_settings(folder):
    path = folder / "cells" / "naive-seed0.json"
    data = json.loads(path.read_text())
    data["settings"]["training"]["epochs"] = 4
    path.write_text(json.dumps(data))


def change_data(folder):
    path = folder / "cells" / "naive-seed0.json"
    data = json.loads(path.read_text())
    data["provenance"]["data"]["digits"] = "0" * 48
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (swap_names, ["naive-seed9: the config has no such cell"]),
        (lambda f: change(f / "cells/naive-seed0.json", seed=3), ["seed: found 3; the name of the file says 0"]),
        (lambda f: change(f / "cells/naive-seed0.json", untrained=[0.5, 2.0]), ["untrained.1: found 2.0; expected 0"]),
        (change_settings, ["training.epochs is 4 in the record and 1 in the config", "have another hash"]),
        (change_data, ["naive-seed0: it was trained on other data called digits"]),
        (lambda f: (f / "models/naive-seed0.pt").unlink(), ["naive-seed0: its weights are not there"]),
        (lambda f: change(f / "data.json", digits="0" * 48), ["data.json: the folder holds results on other data"]),
        (lambda f: (f / "cells/mas~lam=0.1-seed1000.json").write_text("{"), ["mas~lam=0.1-seed1000.json: is damaged"]),
    ],
)
def test_each_kind_of_damage_is_found(damage, problems, copy, monkeypatch):
    monkeypatch.setattr("mas.experiments.maintenance.verify._repeat", lambda record, opened, found: None)
    damage(copy)
    found = verify(copy)
    assert len(found.problems) == len(problems)
    for problem, line in zip(problems, found.problems, strict=True):
        assert problem in line
    assert mas("verify", copy).exit_code == 1


def test_a_cell_that_is_not_finished_cannot_be_verified(trained):
    done = mas("verify", trained, "--cell", "naive-seed7")
    assert done.exit_code == 2
    assert done.output == f"error: {trained}: holds no finished cell naive-seed7; see mas status {trained}\n"


# Merge


@pytest.fixture
def shards(config_file, tmp_path):
    """Three folders, each of a third of the cells."""
    folders = [tmp_path / f"s{i}" for i in (1, 2, 3)]
    for i, folder in enumerate(folders, start=1):
        run(config_file, ["save_model=true"], output=folder, workers=1, shard=(i, 3))
    return folders


def test_three_shards_in_three_folders_come_to_an_ordinary_run(shards, trained, config_file, tmp_path):
    before = [content(folder) for folder in shards]
    done = mas("merge", tmp_path / "all", *shards)
    assert done.output.splitlines() == [
        f"{tmp_path}/all: holds 10 cells of 3 folders; 2 cells of the config are in none of them, so no report: "
        "train them with mas run"
    ]
    assert [content(folder) for folder in shards] == before
    assert not (tmp_path / "all" / "report.html").exists()
    run(config_file, ["save_model=true"], output=tmp_path / "all", workers=1)  # the cells that waited for a choice
    again = mas("merge", tmp_path / "once more", tmp_path / "all", *shards)
    assert again.output.splitlines()[-1] == f"report: {tmp_path}/once more/report.html"
    for folder in (tmp_path / "all", tmp_path / "once more"):
        assert (folder / "results.csv").read_bytes() == (trained / "results.csv").read_bytes()
        assert len(list((folder / "models").iterdir())) == 8
        assert json.loads((folder / "environment.json").read_text()) == [json.loads(json.dumps(vars(environment())))]
        assert (folder / "data.json").read_bytes() == (trained / "data.json").read_bytes()


def test_folders_of_other_configs_are_not_joined(copy, config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(RUN_CELL, lambda cell, keep_weights, context: made_up())
    other = load_config(config_file, ["save_model=true", "training.epochs=2"], try_data=False)
    run_experiment(other, tmp_path / "other", workers=1)
    done = mas("merge", tmp_path / "all", copy, tmp_path / "other")
    assert done.exit_code == 2
    assert done.output == (
        f"error: {tmp_path}/other: is of another config than {copy}: training.epochs is 2 there and 1 here; only "
        "folders of one config can be joined\n"
    )
    assert not (tmp_path / "all").exists()


def test_two_results_of_one_cell_are_not_joined(trained, copy, tmp_path):
    path = copy / "cells" / "mas-seed1.json"
    data = json.loads(path.read_text())
    change(path, seconds=99.0)  # times may differ
    assert merge(tmp_path / "fine", [trained, copy]).left == 0
    data["untrained"][0] /= 2
    path.write_text(json.dumps(data))
    message = rf"^mas-seed1: {trained} and {copy} hold different results: untrained is .*; keep one of the two"
    with pytest.raises(UserError, match=message):
        merge(tmp_path / "all", [trained, copy])
    assert not (tmp_path / "all").exists()


def test_folders_on_other_data_are_not_joined(trained, copy, tmp_path):
    change(copy / "data.json", digits="0" * 48)
    with pytest.raises(UserError, match="holds results on other images called digits than"):
        merge(tmp_path / "all", [trained, copy])


def test_a_folder_with_other_files_is_not_merged_into(trained, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds other files and no config.yaml"):
        merge(tmp_path / "thesis", [trained])
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


# Extend


def test_an_extended_folder_keeps_its_cells_and_belongs_to_the_new_config(copy, config_file, monkeypatch):
    changes = ["save_model=true", "seeds=3"]
    before = content(copy / "cells")
    refused = mas("run", config_file, "--output", copy, "--set", changes[0], "--set", changes[1])
    assert refused.exit_code == 2
    assert "is of another config: seeds is 2 there and 3 here; add cells to it with --extend" in refused.output
    words = ("--output", copy, "--workers", 1, "--set", changes[0], "--set", changes[1], "--extend")
    assert mas("run", config_file, *words).exit_code == 0
    after = content(copy / "cells")
    assert len(after) == len(before) + 4
    assert all(after[path] == data for path, data in before.items())
    with pytest.raises(UserError, match="this config has no cell ewc-seed2 and 3 more"):
        run(config_file, changes[:1], output=copy)


def test_environments_are_compared_by_what_may_change_the_last_bit():
    from mas.experiments.maintenance.equality import differences_of_environments

    here = environment()
    assert differences_of_environments(here, here) == []
    other = replace(here, packages=here.packages | {"torch": "1.0"}, cores=99, system="another")
    assert differences_of_environments(other, here) == [f"torch: 1.0 there and {here.packages['torch']} here"]
