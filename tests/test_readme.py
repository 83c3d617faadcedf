"""What the README and the docs say to type works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mas import experiments
from mas.experiments.config.schema import Training
from mas.experiments.losses import LOSSES
from mas.experiments.read_config import load_config
from mas.experiments.registry import KINDS
from mas.experiments.schedules import SCHEDULES, TORCH_SCHEDULES
from mas.strategies.probes import ProbeRow

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
EXPERIMENTS = (ROOT / "docs/experiments.md").read_text()
TEXTS = README + (ROOT / "docs/importance.md").read_text() + EXPERIMENTS
NAMES = ["plain", "avalanche", "run", "probes", "importance", "own parts", "run a dict", "shards"]
EXAMPLES = dict(zip(NAMES, re.findall(r"```python\n(.*?)```", TEXTS, re.DOTALL), strict=True))
CONFIGS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", EXPERIMENTS, re.DOTALL)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to write in, with the configs and the module of the page's own parts."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "own.py").write_text(EXAMPLES["own parts"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("own", None)


@pytest.mark.parametrize("name", ["plain", "avalanche", "probes", "importance"])
def test_examples_run(name, capfd):
    names: dict = {}
    exec(compile(EXAMPLES[name], "example", "exec"), names)  # noqa: S102
    assert len(capfd.readouterr().out.splitlines()) < 15
    if "probe" in names:
        assert {row.epoch for row in names["probe"].rows} == {0, 5, 10}
        return
    plugins = names["strategy"].plugins if "strategy" in names else []
    penalties = [names[name] for name in names if name == "penalty"] + [
        plugin.penalty for plugin in plugins if hasattr(plugin, "penalty")
    ]
    assert penalties
    assert all(value.sum() > 0 for penalty in penalties for value in penalty.importance.values())


def printed(example):
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True, cwd=ROOT)
    assert len((done.stdout + done.stderr).splitlines()) < 15, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_avalanche_example_prints_accuracies_and_no_flood():
    *experiences, stream = (line.rsplit(" ", 1) for line in printed(EXAMPLES["avalanche"]))
    assert [metric.rpartition("/")[2] for metric, _ in experiences] == [f"Exp00{i}" for i in range(5)]
    values = [float(value) for _, value in experiences]
    assert stream[0].startswith("Top1_Acc_Stream")
    assert min(values) <= float(stream[1]) <= max(values)
    assert float(stream[1]) > 0.6  # it has learned something; chance is 0.5


def test_the_probe_example_prints_its_rows_and_no_flood():
    rows = [line.split() for line in printed(EXAMPLES["probes"])]
    looks = (("fisher_trace", "1"), ("fisher_trace", "3"), ("dormant_units", "2"))
    assert [(row[1], row[3], row[4]) for row in rows] == [(epoch, *at) for epoch in ("0", "5", "10") for at in looks]
    (comment,) = re.findall(r"print\(\*row\)  # (.*)", EXAMPLES["probes"])
    assert re.sub(r" \(.*?\)", "", comment).split(", ") == list(ProbeRow._fields)


def test_the_library_example_needs_no_avalanche():
    assert "avalanche" not in EXAMPLES["plain"]


def check_means(lines):
    """See that the lines are the means of ACC by strategy."""
    heading, *rows = lines
    assert heading.split() == ["strategy", "mean"]
    shown = {strategy: float(mean) for _, strategy, mean in map(str.split, rows)}
    assert {"naive", "mas"} <= set(shown)
    assert all(0 < mean < 1 for mean in shown.values())


def test_an_experiment_runs_from_a_dict(folder, capsys):
    exec(compile(EXAMPLES["run a dict"], "example", "exec"), {})  # noqa: S102
    check_means(capsys.readouterr().out.splitlines())
    assert (folder / "accuracy.png").stat().st_size


def test_shards_are_merged_and_looked_after(folder):
    exec(compile(EXAMPLES["shards"], "example", "exec"), {})  # noqa: S102
    assert (folder / "runs/joined/report.html").exists()


@pytest.mark.slow
def test_an_experiment_runs_from_a_script_without_a_guard(folder):
    (folder / "script.py").write_text(EXAMPLES["run"])
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=path)
    assert not done.stderr
    check_means(done.stdout.splitlines())
    assert (folder / "accuracy.png").stat().st_size


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_configs_of_the_page_are_valid(number, folder):
    """A block that is no whole config changes the first."""
    shown = CONFIGS[number]
    config = shown if "experiment" in shown else CONFIGS[0] | shown
    (folder / "shown.yaml").write_text(yaml.safe_dump(config))
    assert load_config(folder / "shown.yaml").plain().keys() >= config.keys()


def test_own_parts_are_trained(folder):
    (config,) = [shown for shown in CONFIGS if "own:stripes" in str(shown)]
    (folder / "shown.yaml").write_text(yaml.safe_dump(CONFIGS[0] | config | {"seeds": 1, "save_model": True}))
    run = experiments.run(folder / "shown.yaml", output=folder / "run", workers=1)
    assert not run.failed
    assert set(run.results["label"]) == {"naive", "twice"}
    assert set(run.traces["probe"]) == {"norm"}
    assert set(torch.load(folder / "run/models/twice-seed0.pt", weights_only=True)) == {
        f"{layer}.{part}" for layer in ("0.1", "1") for part in ("weight", "bias")
    }


def test_a_stream_that_cannot_be_shown_twice_is_refused(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (config,) = [shown for shown in CONFIGS if shown.get("experiment") == "consolidated_deficit"]
    benchmark = {"stream": "import", "function": "own:pairs"}
    with pytest.raises(experiments.UserError, match=r"benchmark\.stream: found 'import'; allowed: whole"):
        load_config(config | {"benchmark": benchmark})


def test_the_page_names_every_key_and_kind():
    for kind in KINDS.values():
        for key in (kind.name, *kind.config.model_fields, *Training.model_fields):
            assert key in re.findall(r"\w+", EXPERIMENTS), key
    for name in (*TORCH_SCHEDULES, *SCHEDULES, *LOSSES):
        assert f"`{name}`" in EXPERIMENTS, name


def test_commands_and_files_that_it_names_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+) ", README)) <= targets | {"this"}
    for path in re.findall(r"(?:configs|docs|mas|tests|tools)/[\w./-]+\w", README):
        assert (ROOT / path).exists(), path
