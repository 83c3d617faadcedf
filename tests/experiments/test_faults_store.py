"""Faults of cells and disks: one line that says what was found, what was expected and how to mend it; nothing lost."""

import errno
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mas.cli import app
from mas.experiments.compare import compare_folders
from mas.experiments.errors import UserError
from mas.experiments.files import write_whole
from mas.experiments.plan import Plan
from mas.experiments.provenance import Provenance, config_hash, environment
from mas.experiments.read_config import load_config
from mas.experiments.record import CellRecord, EmbeddingRecord, StrengthTry
from mas.experiments.reporting import write_report
from mas.experiments.runner import read_folder, run_experiment
from mas.experiments.store import Store
from tests.experiments.builders import TEXT, first_cell, made_up, make_record

ROOT = Path(__file__).resolve().parents[2]
TRAIN_CELL = "mas.experiments.engines.task.run_cell"
SMALL = ["seeds=1", "strategies=[{name: naive}, {name: joint}]"]


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def run(config_file, tmp_path, monkeypatch):
    """Return a function that runs a small config, without training, and returns the folder."""

    def run_into(name="r", changes=()):
        monkeypatch.setattr(TRAIN_CELL, lambda cell, keep_weights, checkpoints: made_up())
        config = load_config(config_file, [*SMALL, *changes], try_data=False)
        outcome = run_experiment(config, tmp_path / name, workers=1)
        write_report(Store(tmp_path / name), config, outcome.results)
        return tmp_path / name

    return run_into


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def complaint(action):
    """Return the line that is said; what the command line does with it is the same for each."""
    with pytest.raises(UserError) as error:
        action()
    (line,) = error.value.lines
    assert "\n" not in line
    return line


@contextmanager
def without_rights():
    """Run as a user who owns nothing, where tests run as root."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def open_to_all(folder):
    for part in (folder, *folder.parents):
        if "pytest" in str(part) and part.stat().st_uid == os.getuid():
            part.chmod(0o755)


# What a cell's file says


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": "joint"}, "label: found 'joint'; the name of the file says 'naive'"),
        ({"label": ["naive"]}, "label: found ['naive']"),
        ({"seed": 1}, "seed: found 1; the name of the file says 0"),
        ({"seed": False}, "seed: found False"),
        ({"seed": "0"}, "seed: found '0'"),
        ({"seconds": -1}, "seconds: found -1.0; expected at least 0"),
        ({"seconds": float("inf")}, "seconds: found inf"),
        ({"seconds": float("nan")}, "seconds: found nan"),
        ({"status": "done"}, "status: Input should be 'finished' or 'diverged'"),
        ({"untrained": [0.5, 1.5]}, "untrained.1: found 1.5; expected 0 to 1"),
        ({"untrained": [0.5]}, "untrained: found 1 accuracies; expected 2, one of each experience"),
        ({"accuracy": [[0.5, -0.1], [0.5, 0.5]]}, "accuracy.0.1: found -0.1; expected 0 to 1"),
        ({"accuracy": [[0.5, float("nan")], [0.5, 0.5]]}, "accuracy.0.1: found nan; expected 0 to 1"),
        ({"accuracy": [[0.5, 0.5], [0.5]]}, "accuracy.1: found 1 accuracies; expected 2"),
        ({"accuracy": [[0.5, 0.5]]}, "accuracy.0: found 2 accuracies; expected 1"),
        ({"accuracy": [0.5, 0.5]}, "accuracy.0: Input should be a valid list"),
        ({"accuracy": []}, "untrained: found 2 accuracies; expected 0"),
        ({"accuracy": [], "untrained": None}, "accuracy: found none at the end"),
        ({"accuracy": [[0.5, 0.5], [0.5, None]]}, "accuracy: found none at the end; a finished cell has one of each"),
        ({"tries": [[asdict(StrengthTry(-1.0, 0.5, 1.0))]]}, "tries.0.0.strength: found -1.0; expected at least 0"),
        ({"tries": [[asdict(StrengthTry(1.0, 2.0, 1.0))]]}, "tries.0.0.accuracy: found 2.0; expected 0 to 1"),
        ({"tries": [[asdict(StrengthTry(1.0, 0.5, -1.0))]]}, "tries.0.0.seconds: found -1.0"),
        ({"provenance": []}, "provenance"),
        ({"provenance": {"seconds": 1}}, "config_hash: Field required"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_true_is_damaged(changed, message, tmp_path):
    record = make_record()
    Store(tmp_path).write("cells/naive-seed0.json", json.dumps(json.loads(record.to_json()) | changed))
    line = complaint(lambda: Store(tmp_path).read(record.cell))
    assert "naive-seed0.json: is damaged (" in line
    assert message in line or message == "provenance"
    assert line.endswith("; delete it and run again")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": [1.0]}, "embeddings.1: found 2 numbers with 1 scales; expected 2 of both, as in the first"),
        ({"vector": [1.0, 2.0, 3.0], "scale": [1.0] * 3}, "embeddings.1: found 3 numbers with 3 scales"),
        ({"vector": [1.0, float("nan")]}, "embeddings.1: found a number that is not finite"),
        ({"head_accuracy": 1.1}, "embeddings.1.head_accuracy: found 1.1; expected 0 to 1"),
    ],
)
def test_embeddings_that_cannot_be_compared_are_damaged(changed, message, tmp_path):
    whole = EmbeddingRecord("t", [0.1, 0.2], [1.0, 2.0], "c0ffee", 10, 2, "exact", 1e-6, 0.25, 0.875)
    record = make_record(embeddings=[whole, replace(whole, **changed)])
    Store(tmp_path).save(record.cell, record.outcome)
    assert message in complaint(lambda: Store(tmp_path).read(record.cell))


def test_records_at_the_ends_of_the_ranges_are_read(tmp_path):
    tries = [[StrengthTry(0.0, 0.0, 0.0), StrengthTry(1.0, float("nan"), 0.0)]]
    record = make_record(accuracy=[[0.0, 1.0], [1.0, 0.0]], untrained=[0.0, 1.0], seconds=0.0, tries=tries)
    store = Store(tmp_path)
    store.save(record.cell, record.outcome)
    assert store.read(record.cell).outcome.accuracy == record.outcome.accuracy
    lost = make_record(untrained=None, accuracy=[[None, None], [None, None]], status="diverged", reason="loss is nan")
    store.save(record.cell, lost.outcome)
    assert store.read(record.cell).outcome.status == "diverged"


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe", b'{"version": 2, "seed": ' + b"9" * 5000 + b"}"])
def test_files_that_are_no_records_at_all(text, tmp_path):
    cell = make_record().cell
    Store(tmp_path).write("cells/naive-seed0.json", text)
    assert "naive-seed0.json: is damaged (" in complaint(lambda: Store(tmp_path).read(cell))


# Other files of the folder


@pytest.mark.parametrize("text", ["[]", '"text"', "3", "{", "null", '{"digits": 3}', "[" * 100_000])
def test_data_json_of_another_form(text, run, tmp_path):
    folder = run()
    (folder / "data.json").write_text(text)
    before = content(folder)
    assert "data.json: is damaged (" in complaint(run)
    assert content(folder) == before


@pytest.mark.parametrize("text", ["{}", '"text"', "3", "[3]", "null"])
def test_environment_json_of_another_form(text, run):
    folder = run()
    (folder / "environment.json").write_text(text)
    (folder / "cells/naive-seed0.json").unlink()
    before = content(folder)
    line = complaint(run)
    assert "environment.json: is damaged (" in line
    assert line.endswith("; delete it and run again")
    assert content(folder) == before


@pytest.mark.parametrize("text", ["{}", '"text"', "[3]", "null"])
def test_report_json_of_another_form(text, run):
    folder = run()
    (folder / "report.json").write_text(text)
    assert "report.json: is damaged (" in complaint(run)
    (folder / "report.json").unlink()
    run()


def test_a_list_of_files_that_was_edited_removes_nothing_of_the_run(run, tmp_path):
    folder = run()
    outside = tmp_path / "small.yaml"
    (folder / "notes").mkdir()
    names = ["cells/naive-seed0.json", "./config.yaml", "cells", "notes", "", ".", "../small.yaml", "old.csv"]
    (folder / "old.csv").write_text("x")
    (folder / "report.json").write_text(json.dumps([*names, "x/../cells/joint-seed0.json", "data.json"]))
    before = content(folder)
    run()
    assert set(before) - set(content(folder)) == {folder / "old.csv"}
    assert outside.exists()
    assert (folder / "notes").is_dir()


@pytest.mark.parametrize("name", ["cells/naive-seed0.json", "config.yaml", "data.json", "environment.json"])
def test_folders_where_files_should_be_are_said_before_anything_is_trained(name, run, monkeypatch, tmp_path):
    folder = run()
    (folder / "cells/joint-seed0.json").unlink()
    (folder / name).unlink()
    (folder / name).mkdir()
    before = content(folder)
    line = complaint(run)
    assert line == f"{folder / name}: is a folder; expected a file: move the folder away and run again"
    assert content(folder) == before


@pytest.mark.parametrize("name", ["results.csv", "report.html", "report.json"])
def test_folders_in_the_place_of_a_report(name, run):
    folder = run()
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{name}: is a folder; expected a file" in complaint(run)


def test_a_file_in_the_place_of_a_folder(run, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in complaint(lambda: run("file/r"))
    folder = run()
    for path in (folder / "figures").iterdir():
        path.unlink()
    (folder / "figures").rmdir()
    (folder / "figures").write_text("x")
    assert "cannot be written (" in complaint(run)


def test_a_path_that_is_too_long(run, tmp_path):
    for name in ("x" * 300, "/".join(["x" * 200] * 30)):
        assert ": cannot be read (File name too long); choose another folder" in complaint(lambda name=name: run(name))
        assert "(File name too long)" in complaint(lambda name=name: read_folder(tmp_path / name))


def test_damaged_weights(tmp_path):
    record = make_record()
    store = Store(tmp_path)
    store.save(record.cell, record.outcome, {"w": torch.zeros(100)})
    path = tmp_path / "models/naive-seed0.pt"
    for damaged in (path.read_bytes()[:200], b"", b"text"):
        path.write_bytes(damaged)
        assert "models/naive-seed0.pt: is damaged (" in complaint(lambda: store.weights(record.cell))


# The disk


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod", "tempfile.mkstemp"])
def test_a_full_disk_at_any_write_loses_nothing(place, run, monkeypatch):
    folder = run()
    (folder / "cells/joint-seed0.json").unlink()
    before = content(folder)
    with monkeypatch.context() as patched:
        patched.setattr(place, no_space)
        line = complaint(run)
    assert "cannot be written (No space left on device); finished cells are kept: make room" in line
    assert content(folder) == before
    run()
    assert (folder / "cells/joint-seed0.json").is_file()


def test_a_disk_that_fills_at_each_write_in_turn(run, monkeypatch, tmp_path):
    """Whichever write of a run is the first that fails: what was there is whole, and a second run ends well."""
    run()
    writes = len(content(tmp_path / "r"))
    whole = {path.name for path in content(tmp_path / "r")}
    real = os.fsync
    for fails in range(0, 2 * writes, 7):  # two calls for each file: its own, and its folder's
        left = [fails]

        def fill(handle, left=left):
            left[0] -= 1
            if left[0] < 0:
                no_space()
            real(handle)

        folder = tmp_path / f"r{fails}"
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", fill)
            line = complaint(lambda folder=folder: run(folder.name))
        assert "No space left on device" in line
        assert {path.name for path in content(folder)} <= whole  # no temporary files
        run(folder.name)
        assert {path.name for path in content(folder)} == whole


def test_a_run_that_was_killed_at_its_first_write_can_be_started_again(run, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/.config.yaml-x7a").write_text("exper")
    assert (run() / "results.csv").is_file()


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """File, then name, then folder; new folders too."""
    done = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(handle):
        done.append(Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path).as_posix())
        real_sync(handle)

    def replace_(self, target):
        done.append("replace")
        return real_replace(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to name the files")
    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr(Path, "replace", replace_)
    write_whole(tmp_path / "a/b/c.json", b"x")
    assert [name if "c.json-" not in name else "temporary" for name in done] == [
        *("a", "."),
        *("temporary", "replace", "a/b"),
    ]


def test_folders_of_another_user(run, tmp_path):
    folder = run()
    (folder / "cells/joint-seed0.json").unlink()
    open_to_all(folder / "cells")
    (tmp_path / "small.yaml").chmod(0o644)
    for path in content(folder):
        path.chmod(0o644)
    with without_rights():
        for own in (folder, folder / "cells", folder / "cells/naive-seed0.json"):
            mode = own.stat().st_mode
            with as_owner():
                own.chmod(0)
            line = complaint(run)
            assert ": cannot be read (Permission denied); choose another folder with --output, or let this user" in line
            with as_owner():
                own.chmod(mode)
        for own in (folder / "cells", folder):
            with as_owner():
                own.chmod(0o555)
        before = content(folder)
        assert ": cannot be written (Permission denied); finished cells are kept" in complaint(run)
        assert content(folder) == before


@contextmanager
def as_owner():
    """Within `without_rights`, be the owner again."""
    own = os.geteuid()
    os.seteuid(os.getuid())
    try:
        yield
    finally:
        os.seteuid(own)


# Provenance


def test_a_cell_says_what_it_was_made_with(config_file, tmp_path):
    config = load_config(config_file, SMALL)
    run_experiment(config, tmp_path / "r", workers=1)
    store = Store(tmp_path / "r")
    for cell in Plan(config).every_cell():
        found = store.read(cell).provenance
        assert found.config_hash == config_hash(cell.settings)
        assert found.data.keys() == {"digits"}
        assert found.data == json.loads((tmp_path / "r/data.json").read_text())
        assert found.environment == environment()
        assert 0 <= store.read(cell).outcome.seconds <= found.seconds + 0.01
        assert found.started.endswith("+00:00")
        assert 10**7 < found.peak_memory < 10**11


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_the_peak_of_memory_is_that_of_the_cell():
    """In a process of its own: what other tests held would hide the difference."""
    code = """
import torch
from mas.experiments import provenance
from mas.experiments.jobs import run_cell
from tests.experiments.builders import first_cell
cell = first_cell("naive")
run_cell(cell)
taken = torch.ones(10**8)  # 400 MB
before = provenance.peak_memory()
del taken
small = run_cell(cell).provenance.peak_memory
assert small < before - 3 * 10**8, (small, before)
taken = torch.ones(10**8)
assert run_cell(cell).provenance.peak_memory > small + taken.nbytes * 0.75
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def made_with(capability="AVX2"):
    return Provenance("0" * 64, {}, replace(environment(), cpu_capability=capability), "2026-01-01", 1.0, 10**8)


def test_provenance_comes_back_and_takes_no_part_in_comparisons():
    record = make_record()
    with_it = replace(record, provenance=made_with())
    again = CellRecord.from_json(with_it.to_json())
    assert again.provenance == made_with()
    assert again == record  # equal settings and outcomes
    assert CellRecord.from_json(record.to_json()).provenance is None  # as before 0.2
    assert "provenance" not in json.loads(record.to_json())


def test_hashes_differ_where_settings_do():
    one, same, other = (first_cell("naive").settings, first_cell("naive").settings, first_cell("mas").settings)
    assert config_hash(one) == config_hash(same) != config_hash(other)


def test_runs_with_another_instruction_set_are_told(run, tmp_path, monkeypatch):
    for name, capability in (("a", "AVX2"), ("b", "AVX512"), ("c", "AVX2"), ("old", None)):
        folder = run(name)
        for path in (folder / "cells").iterdir():
            data = json.loads(path.read_text())
            if capability:
                path.write_text(json.dumps(data | {"provenance": asdict(made_with(capability))}))
        (folder / "environment.json").write_text('[{"cpu_capability": "DEFAULT"}]')
    note = "instruction set: AVX2 → AVX512; results are the same to the bit only for the same instruction set"
    assert note in compare_folders(tmp_path / "a", tmp_path / "b").notes
    assert not any("instruction set" in line for line in compare_folders(tmp_path / "a", tmp_path / "c").notes)
    assert any("AVX2 → DEFAULT" in line for line in compare_folders(tmp_path / "a", tmp_path / "old").notes)


# Of data


def test_data_of_runs_before_are_known_by_the_shorter_hash(run):
    folder = run()
    known = json.loads((folder / "data.json").read_text())
    assert len(known["digits"]) == 48
    (folder / "data.json").write_text(json.dumps({"digits": known["digits"][:16]}))
    run()
    assert json.loads((folder / "data.json").read_text()) == known
    other = known["digits"][:16] + "0" * 32  # only images that the shorter hash leaves out differ
    (folder / "data.json").write_text(json.dumps({"digits": other}))
    assert "holds results on other images called digits" in complaint(run)


# The command line


def test_the_command_line_ends_with_one_line_and_code_2(run, config_file, tmp_path):
    folder = run()
    (folder / "cells/joint-seed0.json").write_text("[]")
    (folder / "data.json").write_text("[]")
    changes = [part for change in SMALL for part in ("--set", change)]
    for output, message in ((folder, "is damaged"), (tmp_path / ("x" * 300), "File name too long")):
        done = CliRunner().invoke(app, ["run", str(config_file), "--output", str(output), *changes])
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert CliRunner().invoke(app, ["report", str(output)]).exit_code == 2
