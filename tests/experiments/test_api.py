"""Experiments from Python: `mas.experiments.run`, `load` and `Run`."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

import mas
from mas import experiments
from mas.experiments import CellEnded, Run, Started, UserError, api
from mas.experiments.record import Outcome
from mas.experiments.training import Trained, train_cell

ROOT = Path(mas.__file__).resolve().parents[1]
CONFIG = {
    "experiment": "forgetting",
    "benchmark": {"dataset": "digits", "experiences": 2},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 1, "batch_size": 128},
    "strategies": [{"name": "naive"}, {"name": "mas", "lam": 0.1}],
    "seeds": 1,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return experiments.run(CONFIG, output=tmp_path_factory.mktemp("done") / "run", workers=1)


@pytest.fixture
def fast(monkeypatch):
    """Cells that are not trained."""

    def train(cell, keep_weights, checkpoints):
        return Trained(Outcome(untrained=[0.1, 0.1], accuracy=[[0.9, 0.1], [0.5, 0.9]], seconds=1.0))

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", train)


class TestWhatIsRun:
    """Configs, changes and folders."""

    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_path_may_be_text(self, fast, tmp_path, kind):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
        run = experiments.run(kind(tmp_path / "c.yaml"), output=kind(tmp_path / "run"), workers=1)
        assert run.folder == tmp_path / "run"
        assert (tmp_path / "run" / "report.html").is_file()
        assert experiments.load(kind(tmp_path / "run")).results.equals(run.results)

    def test_a_dict_is_a_config_and_stays_as_it_is(self, fast, tmp_path):
        given = yaml.safe_load(yaml.safe_dump(CONFIG))
        run = experiments.run(given, {"strategies.1.lam": 7}, output=tmp_path / "run", workers=1)
        assert run.config.strategies[1].lam == 7.0
        assert given == CONFIG

    @pytest.mark.parametrize(
        "changes",
        [
            {"seeds": [3, 4], "training.lr": 1e-05, "strategies.0.label": None, "benchmark.scenario": "task"},
            ["seeds=[3, 4]", "training.lr=1e-05", "strategies.0.label=null", "benchmark.scenario=task"],
            ("seeds=[3, 4]", "training.lr=1e-5", "strategies.0={name: naive}", "benchmark.scenario=task"),
        ],
        ids=["dict", "list", "tuple"],
    )
    def test_values_are_changed(self, fast, tmp_path, changes):
        config = experiments.run(CONFIG, changes, output=tmp_path / "run", workers=1).config
        assert (config.seeds, config.training.lr, config.benchmark.scenario) == ([3, 4], 1e-5, "task")
        assert config.strategies[0].label is None

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("strategies", [{"name": "ewc", "label": "a", "lam": 1.0}]),
            ("model", {"name": "mlp", "hidden": [3, 2]}),
            ("data_root", "text with: a colon # and more"),
            ("data_root", "3"),
            ("data_root", "null"),
            ("data_root", "é😀\n"),
            ("data_root", Path("a/b")),
            ("save_model", True),
            ("strategies.0.label", "1e5"),
            ("training.lr", 1e-10),
        ],
    )
    def test_any_value_arrives_as_it_is(self, fast, tmp_path, key, value, monkeypatch):
        monkeypatch.setattr("mas.experiments.read_config._look_in", lambda root: None)
        config = experiments.run(CONFIG, {key: value}, output=tmp_path / "run", workers=1).config
        plain = config.plain()
        for part in key.split("."):
            plain = plain[int(part) if part.isdigit() else part]
        expected = value[0] if isinstance(value, list) else str(value) if isinstance(value, Path) else value
        found = plain[0] if isinstance(value, list) else plain
        assert expected.items() <= found.items() if isinstance(expected, dict) else expected == found

    @pytest.mark.parametrize(
        ("config", "changes", "message"),
        [
            ("nowhere.yaml", {}, r"^nowhere.yaml: no such file$"),
            (CONFIG, {"training.epoch": 2}, r"training.epoch: unknown key, did you mean 'epochs'\?; allowed: epochs"),
            (CONFIG, {"strategies.7.lam": 2}, r"there is no 7 in a list of 2"),
            (CONFIG | {"seeds": 0}, {}, r"^seeds: found 0; allowed: greater than 0"),
            ({"benchmark": {}}, {}, r"^experiment: missing; allowed: forgetting, "),
            ({}, {}, r"^experiment: missing; allowed: forgetting, "),
        ],
    )
    def test_mistakes_are_user_errors(self, tmp_path, config, changes, message):
        with pytest.raises(UserError, match=message) as error:
            experiments.run(config, changes, output=tmp_path / "run", workers=1)
        assert len(error.value.lines) == 1
        assert not (tmp_path / "run").exists()

    def test_it_goes_on_where_it_was(self, tmp_path, monkeypatch):
        tried = []

        def train(cell, keep_weights, checkpoints):
            tried.append(cell.id)
            return train_cell(cell, keep_weights)

        monkeypatch.setattr("mas.experiments.engines.task.run_cell", train)
        first = experiments.run(CONFIG, output=tmp_path / "run", workers=1)
        events = []
        (tmp_path / "run" / "cells" / "mas-seed0.json").unlink()
        again = experiments.run(CONFIG, output=tmp_path / "run", workers=1, progress=events.append)
        assert tried == ["naive-seed0", "mas-seed0", "mas-seed0"]
        assert (events[0].kept, events[0].total) == (1, 2)
        pd.testing.assert_frame_equal(again.results, first.results)
        with pytest.raises(UserError, match=r"holds other results: strategy.lam is 0.1 there and 2.0 here"):
            experiments.run(CONFIG, {"strategies.1.lam": 2}, output=tmp_path / "run", workers=1)

    def test_events_of_a_run(self, fast, tmp_path):
        events = []
        experiments.run(CONFIG, {"seeds": 2}, output=tmp_path / "run", workers=1, progress=events.append)
        assert events[0] == Started(tmp_path / "run", 0, 4)
        ended = [event for event in events if isinstance(event, CellEnded)]
        assert [str(event) for event in ended] == [
            *("naive-seed0: finished, 1.0 s", "mas-seed0: finished, 1.0 s"),
            *("naive-seed1: finished, 1.0 s", "mas-seed1: finished, 1.0 s"),
        ]

    def test_cells_that_break_are_told_and_the_others_kept(self, tmp_path, monkeypatch):
        def train(cell, keep_weights, checkpoints):
            if cell.label == "mas":
                raise ZeroDivisionError("oh")
            return train_cell(cell, keep_weights)

        monkeypatch.setattr("mas.experiments.engines.task.run_cell", train)
        events = []
        run = experiments.run(CONFIG, output=tmp_path / "run", workers=1, progress=events.append)
        assert run.failed == ("mas-seed0: ZeroDivisionError: oh",)
        ended = [event for event in events if isinstance(event, CellEnded)]
        assert [event.status for event in ended] == ["finished", "failed"]
        assert set(run.results.label) == {"naive"}
        assert (tmp_path / "run" / "report.html").is_file()
        assert experiments.load(tmp_path / "run").failed == ()

    def test_where_every_cell_breaks_there_is_no_report(self, tmp_path, monkeypatch):
        monkeypatch.setattr("mas.experiments.engines.task.run_cell", lambda cell, keep_weights, checkpoints: 1 / 0)
        run = experiments.run(CONFIG, output=tmp_path / "run", workers=1)
        assert len(run.failed) == 2
        assert run.results.empty
        assert not (tmp_path / "run" / "report.html").exists()
        with pytest.raises(UserError, match="holds no finished cell"):
            run.report()

    def test_a_progress_function_that_raises_ends_the_run_and_keeps_its_cells(self, fast, tmp_path):
        def stop(event):
            if isinstance(event, CellEnded):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            experiments.run(CONFIG, output=tmp_path / "run", workers=1, progress=stop)
        assert [path.stem for path in (tmp_path / "run" / "cells").iterdir()] == ["naive-seed0"]


class TestWhatARunHas:
    """Tables and figures."""

    def test_tables_are_attributes(self, done):
        assert set(done.tables) == {"results", "summary", "comparisons", "selection"}
        for name, table in done.tables.items():
            assert isinstance(table, pd.DataFrame)
            assert getattr(done, name) is table
        assert set(done.results.label) == {"naive", "mas"}
        assert done.results.accuracy.between(0, 1).all()

    def test_tables_are_those_of_the_folder(self, done):
        for name, table in done.tables.items():
            text = table.to_csv(index=False, lineterminator="\n")
            assert (done.folder / f"{name}.csv").read_text() == text

    def test_a_figure_by_name(self, done):
        assert set(done.figures) >= {"accuracy_over_stream", "matrix_naive"}
        figure = done.figure("accuracy_over_stream")
        assert isinstance(figure, Figure)
        assert figure.axes[0].get_title()
        assert {path.stem for path in (done.folder / "figures").iterdir()} == set(done.figures)

    def test_unknown_names_say_what_there_is(self, done):
        with pytest.raises(AttributeError, match="no table 'curves'; this run has results, summary, comparisons, sel"):
            _ = done.curves
        with pytest.raises(KeyError, match=r"no figure 'curves'; this run has .*accuracy_over_stream"):
            done.figure("curves")
        assert not hasattr(done, "traces")

    def test_the_config_is_typed_and_whole(self, done):
        assert done.config.training.epochs == 1
        assert done.config.training.optimizer.name == "adam"

    def test_records_of_cells(self, done):
        assert [(record.label, record.seed) for record in done.outcomes.records] == [("naive", 0), ("mas", 0)]
        assert all(record.outcome.finished for record in done.outcomes.records)

    def test_names_are_completed_and_shown(self, done):
        assert {"results", "summary", "comparisons", "selection", "figure", "config"} <= set(dir(done))
        assert repr(done) == f"Run({str(done.folder)!r}: forgetting, 2 cells, 0 failed)"

    def test_it_can_be_copied(self, done):
        for again in (copy.copy(done), copy.deepcopy(done)):
            assert again.results.equals(done.results)

    def test_the_headline_is_that_of_the_terminal(self, done):
        rows = done.headline().table.rows
        assert [row[0] for row in rows] == ["naive", "mas"]
        assert done.report() == done.headline()

    def test_loading_needs_a_folder_of_ours(self, tmp_path):
        with pytest.raises(UserError, match=r"holds no config.yaml; expected a folder that mas run has written"):
            experiments.load(tmp_path)

    def test_loading_trains_nothing_and_reads_no_data(self, done, monkeypatch):
        monkeypatch.setattr(
            "mas.experiments.engines.task.run_cell", lambda cell, keep, checkpoints: pytest.fail("trained")
        )
        monkeypatch.setattr("mas.benchmarks.building.load_dataset", lambda spec: pytest.fail("read the data"))
        loaded = experiments.load(done.folder)
        assert isinstance(loaded, Run)
        assert loaded.config.plain() == done.config.plain()
        pd.testing.assert_frame_equal(loaded.summary, done.summary)


SCRIPT = f"""\
from mas import experiments

print("once")
run = experiments.run({CONFIG | {"seeds": 2}!r}, output="run", workers=2)
print(len(run.results), run.failed)
"""


def in_a_process(tmp_path, *arguments, text=None):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        input=text,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["script", "stdin", "-c"])
def test_several_workers_need_no_guard(tmp_path, way):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments, text = {"script": (("script.py",), None), "stdin": (("-",), SCRIPT), "-c": (("-c", SCRIPT), None)}[way]
    done = in_a_process(tmp_path, *arguments, text=text)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["once", f"{4 * 6} ()"]
    assert len(list((tmp_path / "run" / "cells").iterdir())) == 4


@pytest.mark.slow
def test_a_script_is_whole_again_after_a_run(tmp_path):
    """What is hidden from workers is there again: a pool of the script's own finds its functions."""
    (tmp_path / "script.py").write_text(
        f"from multiprocessing import get_context\nfrom mas import experiments\n\n"
        f"def twice(x):\n    return 2 * x\n\n"
        f"if __name__ == '__main__':\n"
        f"    experiments.run({CONFIG!r}, output='run', workers=2)\n"
        f"    with get_context('spawn').Pool(1) as pool:\n"
        f"        print(__file__.endswith('script.py'), pool.map(twice, [1, 2]))\n"
    )
    done = in_a_process(tmp_path, "script.py")
    assert done.stdout.splitlines() == ["True [2, 4]"]


@pytest.mark.parametrize("place", [experiments, api.run], ids=["package", "run"])
def test_the_examples_of_the_documentation_run(place, fast, tmp_path, monkeypatch):
    """The examples in docstrings are skipped as doctests, for they take long; here their cells are not trained."""
    lines = re.findall(r">>> (.*?)\s*(?:# doctest: \+SKIP)?$", place.__doc__, re.MULTILINE)
    assert any("run(" in line for line in lines)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    five = Outcome(untrained=[0.1] * 5, accuracy=[[0.5] * 5 for _ in range(5)], seconds=1.0)
    monkeypatch.setattr("mas.experiments.engines.task.run_cell", lambda cell, keep_weights, checkpoints: Trained(five))
    monkeypatch.setattr("mas.experiments.engines.local.cores", lambda: 1)
    names = {"run": experiments.run, "load": experiments.load}
    for line in lines:
        exec(line, names)  # noqa: S102
    assert (tmp_path / "runs/small/report.html").is_file()
