"""The folder of a run: what is written, what is refused, and that nothing half-written stays."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml

from mas.experiments.build import build_benchmark, model_for
from mas.experiments.errors import UserError
from mas.experiments.events import Started
from mas.experiments.plan import Plan
from mas.experiments.provenance import environment
from mas.experiments.read_config import load_config
from mas.experiments.runner import read_folder, run_experiment
from mas.experiments.seeds import stream_seed
from mas.experiments.store import Store
from mas.experiments.training import train_cell
from tests.data import make_folder
from tests.experiments.builders import TEXT, first_cell, made_up, make_record

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
def finished(config, tmp_path_factory):
    """A folder whose cells are finished, with made-up accuracies."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAIN_CELL, lambda cell, keep_weights, checkpoints: made_up())
        run_experiment(config, folder, workers=1)
    return folder


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epochs=2", "training.epochs is 1 there and 2 here"),
        ("strategies.2.lam=3", "strategy.lam is 1.0 there and 3.0 here"),
        ("benchmark.scenario=class", "benchmark.scenario is domain there and class here"),
        ("training.optimizer=adamw", "training.optimizer.name is adam there and adamw here"),
        ("training.loss={name: cross_entropy, label_smoothing: 0.1}", "training.loss.label_smoothing is 0.0 there"),
        ("training.schedule={name: StepLR, step_size: 2}", "training.schedule is None there and {'name': 'StepLR', "),
        ("model.hidden=[9]", r"model.hidden is \[8\] there and \[9\] here"),
    ],
)
def test_a_folder_with_other_results_is_refused_and_left_alone(config_file, finished, change, message):
    before = content(finished)
    with pytest.raises(UserError, match=f"^{finished}: holds other results: {message}") as caught:
        run_experiment(load_config(config_file, [change]), finished, workers=1)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].endswith("; choose another folder with --output, or delete this one")
    assert content(finished) == before


@pytest.mark.parametrize(
    ("changes", "beside"),
    [
        (["seeds=1"], "ewc-seed1 and 3 more"),
        (["seeds=[1, 2]"], "ewc-seed0 and 3 more"),
        (["strategies=[{name: naive}, {name: joint}, {name: mas, lam: 1.0}]"], "ewc-seed0 and 1 more"),
        (["strategies.0.label=plain", "seeds=[0, 1]"], "naive-seed0 and 1 more"),
    ],
)
def test_cells_that_a_config_does_not_have_are_refused_and_left_alone(config_file, finished, changes, beside):
    before = content(finished)
    message = f"holds other results: this config has no cell {beside}; choose another folder"
    with pytest.raises(UserError, match=message):
        run_experiment(load_config(config_file, changes), finished, workers=1)
    assert content(finished) == before


def test_how_many_are_kept_is_said_when_the_folder_is_accepted(config, config_file, finished, monkeypatch):
    monkeypatch.setattr(TRAIN_CELL, lambda cell, keep_weights, checkpoints: pytest.fail("ran"))
    told = []
    run_experiment(config, finished, workers=1, progress=told.append)
    assert told == [Started(finished, 8, 8)]
    with pytest.raises(UserError):
        run_experiment(load_config(config_file, ["seeds=1"]), finished, workers=1, progress=told.append)
    assert len(told) == 1


def test_a_folder_with_other_files_is_refused_and_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds other files and no config.yaml"):
        run_experiment(config, tmp_path, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        run_experiment(config, tmp_path / "thesis.tex", workers=1)


@pytest.mark.parametrize("damage", ['{"label": "nai', "[]", '{"version": 2}', "", '"text"', "3"])
def test_a_damaged_cell_is_said(damage, config, tmp_path):
    Store(tmp_path).write("config.yaml", "x: 1")
    Store(tmp_path).write("cells/naive-seed0.json", damage)
    with pytest.raises(UserError, match=r"naive-seed0.json: is damaged .*; delete it and run again$") as caught:
        run_experiment(config, tmp_path, workers=1)
    assert len(caught.value.lines) == 1
    assert "\n" not in caught.value.lines[0]


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("accuracy", "high", "accuracy"),
        ("status", "done", "status"),
        ("probes", [{"label": "loss"}], "probes.0"),
        ("settings", {"experiment": "forgetting"}, "benchmark"),
        ("settings", [], ""),
        ("seconds", None, "seconds"),
    ],
)
def test_a_record_with_a_wrong_field_is_damaged(key, value, where, tmp_path):
    record = make_record()
    data = json.loads(record.to_json()) | {key: value}
    Store(tmp_path).write("cells/naive-seed0.json", json.dumps(data))
    with pytest.raises(UserError, match=rf"naive-seed0.json: is damaged \({where}.*; delete it and run again$"):
        Store(tmp_path).read(record.cell)


@pytest.mark.parametrize(("version", "told"), [(None, 1), (1, 1), (3, 3)])
def test_a_record_of_another_format_is_refused_with_what_to_do(version, told, config, finished, tmp_path):
    """Before 0.1.0 a record had no version, and a probe's row no name."""
    folder = tmp_path / "old"
    record = make_record("naive", 0)
    data = json.loads(record.to_json())
    del data["version"]
    Store(folder).write("config.yaml", (finished / "config.yaml").read_bytes())
    Store(folder).write("cells/naive-seed0.json", json.dumps(data | ({"version": version} if version else {})))
    expected = (
        f"{folder}/cells/naive-seed0.json: is of format {told}; this version of mas reads format 2; "
        "run again, and choose another folder with --output, or delete this one"
    )
    for refused in (lambda: read_folder(folder), lambda: run_experiment(config, folder, workers=1)):
        with pytest.raises(UserError) as caught:
            refused()
        assert caught.value.lines == (expected,)
    assert sorted(path.name for path in folder.rglob("*")) == ["cells", "config.yaml", "naive-seed0.json"]


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write("a.txt", "old")

    def full(*_):
        raise OSError("disk is full")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(UserError, match=r"a.txt: cannot be written \(disk is full\); finished cells are kept"):
        store.write("a.txt", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_no_temporary_files_stay(finished):
    assert not list(finished.rglob(".*"))


def test_config_and_environment_are_kept(config, finished):
    assert yaml.safe_load((finished / "config.yaml").read_text()) == config.plain()
    known = json.loads((finished / "environment.json").read_text())
    assert len(known) == 1  # nothing was trained with anything else
    assert known[0]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert {"git_commit", "processor", "python"} <= known[0].keys()
    assert known[0]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert known[0]["threads"] == 1


@pytest.mark.parametrize("asked", ["default", "avx2"])
def test_the_instruction_set_is_the_one_that_torch_uses(asked):
    code = "from mas.experiments.provenance import environment as e; import torch; print(e().cpu_capability)"
    changed = {**os.environ, "ATEN_CPU_CAPABILITY": asked}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=changed)
    assert done.stdout.strip() in (asked.upper(), "DEFAULT")  # not every processor has the other


def test_another_environment_is_added_where_more_is_trained(config_file, tmp_path, monkeypatch):
    folder, here = tmp_path / "r", environment()
    monkeypatch.setattr(TRAIN_CELL, lambda cell, keep_weights, checkpoints: made_up())
    for number, seeds in ((0, 1), (1, 1), (2, 2), (2, 3)):
        other = replace(here, python=str(number))
        monkeypatch.setattr("mas.experiments.store.environment", lambda other=other: other)
        run_experiment(load_config(config_file, [f"seeds={seeds}"]), folder, workers=1, extend=True)
    known = json.loads((folder / "environment.json").read_text())
    assert [entry["python"] for entry in known] == ["0", "2"]


def test_other_images_of_the_same_name_are_other_results(tmp_path, monkeypatch):
    monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TRAIN_CELL, lambda cell, keep_weights, checkpoints: made_up())
    text = TEXT.replace("dataset: digits", "dataset: {name: image_folder, path: photos, size: 8}")
    (tmp_path / "c.yaml").write_text(text.replace("seeds: 2", "seeds: 1"))
    for number, root in enumerate((tmp_path / "a", tmp_path / "b")):
        make_folder(root / "photos", {"x": 3, "y": 3}, shade=10 * number)
    run_experiment(load_config(tmp_path / "c.yaml", data_root=tmp_path / "a"), tmp_path / "r", workers=1)
    config = load_config(tmp_path / "c.yaml", data_root=tmp_path / "b")
    with pytest.raises(UserError, match=r"holds results on other images called .*photos.*; give the same --data"):
        run_experiment(config, tmp_path / "r", workers=1)


# save_model: true


def accuracies(model, stream):
    """Return the accuracy on each experience, by plain torch."""
    found = []
    for experience in stream:
        x, y, _ = experience.dataset.eval().batch(range(len(experience.dataset)))
        found.append((model.eval()(x).argmax(1) == y).double().mean().item())
    return found


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_that_are_kept_give_the_accuracies_of_the_record(workers, config_file, tmp_path):
    changes = ["save_model=true", "model={name: mlp, hidden: [8], norm: batch}"]
    config = load_config(config_file, changes)
    outcome = run_experiment(config, tmp_path / "r", workers=workers)
    store = Store(tmp_path / "r")
    assert len(outcome.results.records) == len(list((tmp_path / "r" / "models").iterdir())) == 8
    for record in outcome.results.records:
        settings, seed = record.cell.settings, record.seed
        benchmark = build_benchmark(settings, seed)
        model = model_for(benchmark, settings.model, stream_seed(seed, "initialisation"))
        assert accuracies(model, benchmark.test_stream) == pytest.approx(record.outcome.untrained, abs=1e-12)
        model.load_state_dict(store.weights(record.cell))
        assert accuracies(model, benchmark.test_stream) == pytest.approx(record.outcome.accuracy[-1], abs=1e-12)


def test_weights_are_kept_where_asked_alone_and_change_nothing_else(config_file, tmp_path):
    one = ["seeds=1", "strategies=[{name: naive}]"]
    plain, kept = (load_config(config_file, [*one, f"save_model={flag}"]) for flag in ("false", "true"))
    first = run_experiment(plain, tmp_path / "plain", workers=1).results.records[0]
    second = run_experiment(kept, tmp_path / "kept", workers=1).results.records[0]
    assert first.outcome.accuracy == second.outcome.accuracy
    assert first.cell == second.cell  # the cell's settings do not say what is kept
    assert not (tmp_path / "plain" / "models").exists()
    with pytest.raises(UserError, match=r"models/naive-seed0.pt: no such file; weights are kept by .*save_model: true"):
        Store(tmp_path / "plain").weights(first.cell)
    saved = torch.load(tmp_path / "kept" / "models" / "naive-seed0.pt", weights_only=True)
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in saved.values())


def test_tries_keep_no_weights(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(TRAIN_CELL, lambda cell, keep, checkpoints: asked.append((cell.label, keep)) or made_up())
    text = TEXT.replace("lam: 1.0", "lam: {select: [1, 2]}") + "save_model: true\n"
    (tmp_path / "c.yaml").write_text(text)
    run_experiment(load_config(tmp_path / "c.yaml", ["seeds=1"]), tmp_path / "r", workers=1)
    assert asked == [
        *[("mas~lam=1.0", False)] * 2,
        *[("mas~lam=2.0", False)] * 2,
        *[(label, True) for label in ("naive", "joint", "mas", "ewc")],
    ]


def test_cells_trained_before_weights_were_asked_for_are_told(config_file, tmp_path):
    """A finished cell is not trained again; that its weights are missing must not go unsaid."""
    one = ["seeds=1", "strategies=[{name: naive}]"]
    run_experiment(load_config(config_file, one), tmp_path / "r", workers=1)
    before = content(tmp_path / "r")
    with pytest.raises(UserError, match=r"holds naive-seed0 without its weights \(save_model: true\); choose another"):
        run_experiment(load_config(config_file, [*one, "save_model=true"]), tmp_path / "r", workers=1)
    assert content(tmp_path / "r") == before


def test_what_is_kept_is_on_the_cpu_and_a_copy():
    trained = train_cell(first_cell("naive"), keep_weights=True)
    assert set(trained.weights) == {"0.1.weight", "0.1.bias", "1.weight", "1.bias"}
    assert train_cell(first_cell("naive")).weights is None


def test_every_cell_has_a_file_of_its_own(config):
    ids = [cell.id for cell in Plan(config).every_cell()]
    assert len(set(ids)) == 8
