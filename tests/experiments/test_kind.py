"""A kind of experiment is one object; nothing outside the kinds knows which kinds there are."""

import ast
import json
import re
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import pytest
import yaml
from pydantic import Field
from typer.testing import CliRunner

import mas.experiments
from mas.annotations import Positive
from mas.cli import app
from mas.experiments.cell import settings_for
from mas.experiments.config.schema import STRATEGY_MODELS, TrainingExperiment, WholeStream
from mas.experiments.errors import UserError
from mas.experiments.kind import Kind, PlannedRun
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.registry import KINDS, kind_of
from mas.experiments.report.drawing import blank
from mas.experiments.report.sections import Headline, Page, Section, Table
from mas.experiments.tables import final_accuracies, results_table

# A kind of its own: the same network is trained with several learning rates.


class Rates(TrainingExperiment):
    """``experiment: rates``: train one network with several learning rates."""

    experiment: Literal["rates"]
    benchmark: WholeStream
    rates: Annotated[list[Positive], Field(min_length=1)]


def check(config, source):
    if 1.0 in config.rates:
        raise UserError(f"{source.where(('rates', config.rates.index(1.0)))}: found 1; allowed: less than 1")


def plan(config):
    naive = STRATEGY_MODELS["naive"]()
    settings = settings_for(config, strategy=naive)
    return [PlannedRun(f"lr-{rate:g}", _with_rate(settings, rate)) for rate in config.rates]


def _with_rate(settings, rate):
    return settings.model_copy(update={"training": settings.training.model_copy(update={"lr": rate})})


def tables(config, results):
    accuracies = final_accuracies(results.records)
    means = [(label, pd.Series(found).mean()) for label, found in accuracies.items()]
    return {"results": results_table(results.records), "means": pd.DataFrame(means, columns=["label", "accuracy"])}


def figures(config, made):
    figure, axes = blank(4, 3)
    axes.plot(made["means"]["label"], made["means"]["accuracy"])
    return {"rates": figure}


def shown(made):
    return Table(["rate", "accuracy"], [[row.label, f"{row.accuracy:.3f}"] for row in made["means"].itertuples()])


def page(config, made):
    return Page("learning rates", "One network each.", [Section("Rates", "Which rate?", shown(made), ["rates"])])


def headline(config, made):
    return Headline("accuracy by rate", shown(made), ["a note of this kind"])


RATES = Kind("rates", Rates, plan, tables, page, headline, figures=figures, check=check, renamed={"speeds": "rates"})
TEXT = """\
experiment: rates
benchmark: {dataset: digits, train: 40, test: 30}
model: {name: mlp, hidden: [4]}
training: {epochs: 1, batch_size: 20}
rates: [0.1, 0.01]
seeds: 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "rates", RATES)
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(TEXT)
    return tmp_path


def mas_command(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


class TestAKindWrittenInATest:
    """Planned, checked, run, stored, reported."""

    def test_it_is_planned(self, here):
        config = load_config("own.yaml")
        assert kind_of(config) is RATES
        cells = Plan(config).every_cell()
        assert [cell.id for cell in cells] == ["lr-0.1-seed0", "lr-0.01-seed0", "lr-0.1-seed1", "lr-0.01-seed1"]
        assert [cell.settings.training.lr for cell in cells] == [0.1, 0.01, 0.1, 0.01]
        assert {cell.settings.experiment for cell in cells} == {"rates"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("rates=[0.1, 1]", "--set rates=[0.1, 1]: rates[1]: found 1; allowed: less than 1"),
            ("rates=[0]", "--set rates=[0]: rates[0]: found 0; allowed: greater than 0"),
            (
                "rate=[0.1]",
                "--set rate=[0.1]: rate: unknown key, did you mean 'rates'?; allowed: experiment, seeds, data_root, "
                "logging, sweep, resources, benchmark, model, training, save_model, rates",
            ),
            ("rates=[0.1, 0.1]", "own.yaml:1: two runs would have the label 'lr-0.1'; give one of them another label"),
            (
                "training.batch_size={select: [10, 20]}",
                "--set training.batch_size={select: [10, 20]}: training.batch_size.select: "
                "experiment: rates has no ACC to choose by; give one value",
            ),
        ],
    )
    def test_it_is_checked(self, here, change, message):
        done = mas_command("check", "own.yaml", "--set", change)
        assert done.exit_code == 2
        assert done.stderr.splitlines() == [f"error: {message}"]

    def test_it_is_run_stored_and_reported(self, here):
        done = mas_command("run", "own.yaml", "--workers", "1")
        assert done.exit_code == 0, done.output
        for text in ("4/4 lr-0.01-seed1: finished", "accuracy by rate", "a note of this kind"):
            assert text in done.output
        folder = here / "runs" / "own"
        assert {path.stem for path in (folder / "cells").iterdir()} == {
            f"lr-{rate}-seed{seed}" for rate in ("0.1", "0.01") for seed in (0, 1)
        }
        assert {path.name for path in folder.glob("*.csv")} == {"results.csv", "means.csv"}
        assert [path.name for path in (folder / "figures").iterdir()] == ["rates.png"]
        html = (folder / "report.html").read_text()
        assert "learning rates" in html
        assert html.count("data:image/png") == 1
        assert yaml.safe_load((folder / "config.yaml").read_text())["rates"] == [0.1, 0.01]
        again = mas_command("run", "own.yaml", "--workers", "1")
        assert "4 of 4 cells are finished already" in again.output
        (folder / "report.html").unlink()
        reported = mas_command("report", "runs/own")
        assert reported.exit_code == 0
        assert "a note of this kind" in reported.output
        assert (folder / "report.html").read_text() == html
        assert list(mas.experiments.load(folder).means.label) == ["lr-0.1", "lr-0.01"]

    def test_its_cells_differ_only_where_it_says(self, here):
        mas_command("run", "own.yaml", "--workers", "1")
        cells = [json.loads((here / f"runs/own/cells/lr-{rate}-seed0.json").read_text()) for rate in ("0.1", "0.01")]
        first, second = (cell["settings"] for cell in cells)
        assert first.pop("training") | {"lr": 0.01} == second.pop("training")
        assert first == second

    def test_its_old_keys_are_read(self, here):
        with pytest.warns(FutureWarning, match="speeds: is now called rates"):
            assert load_config(yaml.safe_load(TEXT.replace("rates:", "speeds:"))).rates == [0.1, 0.01]

    def test_it_is_not_compared(self, here):
        mas_command("run", "own.yaml", "--workers", "1")
        done = mas_command("compare", "runs/own", "runs/own")
        assert done.exit_code == 2
        assert done.stderr == (
            "error: runs of experiment: rates cannot be compared; only runs of experiment: forgetting\n"
        )


def test_an_unknown_kind_is_one_clear_line(tmp_path, monkeypatch):
    path = tmp_path / "own.yaml"
    path.write_text(TEXT)
    done = mas_command("run", str(path))
    assert done.exit_code == 2
    assert done.stderr == (f"error: {path}:1: experiment: found 'rates'; allowed: {', '.join(KINDS)}\n")


def test_a_folder_of_an_unknown_kind_is_one_clear_line(tmp_path):
    (tmp_path / "config.yaml").write_text(TEXT)
    done = mas_command("report", str(tmp_path))
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "config.yaml:1: experiment: found 'rates'; allowed: " in done.stderr


# The sources.

PACKAGE = Path(mas.experiments.__file__).parent
SHARED = sorted(path for path in [*PACKAGE.rglob("*.py"), PACKAGE.parent / "cli.py"] if "kinds" not in path.parts)
KIND_FOLDERS = sorted(path.name for path in (PACKAGE / "kinds").iterdir() if (path / "__init__.py").is_file())
SHARED_IDS = [str(path.relative_to(PACKAGE.parent)) for path in SHARED]


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree):
    """The strings that stand alone: docstrings, also of values."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def is_config(node):
    """Whether an expression is a config: `config`, `self.config`, `a_config`, `plan.config`."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name == "config" or name.endswith("_config")


def calls(tree, name):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def test_the_registry_lists_every_folder():
    assert sorted(KINDS) == KIND_FOLDERS
    assert all(kind.name == name for name, kind in KINDS.items())


@pytest.mark.parametrize("path", SHARED, ids=SHARED_IDS)
def test_nothing_shared_names_a_kind(path):
    tree = tree_of(path)
    told = docstrings(tree)
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    named = [text for text in texts if text in KINDS or re.search("experiment: (" + "|".join(KINDS) + ")", text)]
    in_docstrings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) in told]
    assert [text for text in named if text not in in_docstrings] == []


@pytest.mark.parametrize("path", SHARED, ids=SHARED_IDS)
def test_nothing_shared_but_the_registry_imports_a_kind(path):
    modules = [node.module or "" for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.Import) for alias in node.names]
    kinds = [module for module in modules if module.startswith("mas.experiments.kinds")]
    assert bool(kinds) == (path.name == "registry.py")


@pytest.mark.parametrize("path", SHARED, ids=SHARED_IDS)
def test_nothing_shared_asks_a_config_what_it_is(path):
    tree = tree_of(path)
    asked = [*calls(tree, "isinstance"), *calls(tree, "getattr"), *calls(tree, "hasattr"), *calls(tree, "type")]
    assert [ast.unparse(call) for call in asked if is_config(call.args[0])] == []


@pytest.mark.parametrize("folder", KIND_FOLDERS)
def test_no_kind_imports_another(folder):
    for path in (PACKAGE / "kinds" / folder).glob("*.py"):
        for node in ast.walk(tree_of(path)):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("mas.experiments.kinds."):
                assert module.split(".")[3] == folder
