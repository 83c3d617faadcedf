"""The recipes of CONTRIBUTING.md work as they stand there, and what the page names is there."""

import ast
import importlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = TEXT.partition("## How to add")[2].partition("### Anything else")[0]

# The examples are used in two tiny runs.
FORGETTING = {
    "experiment": "forgetting",
    "benchmark": {"dataset": {"name": "stripes", "count": 12}, "scenario": "class", "experiences": 2},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 1, "batch_size": 4},
    "seeds": 2,
    "strategies": [{"name": "naive"}, {"name": "magnitude", "lam": 2}],
    "probes": [{"name": "largest_weight"}],
}
HOW_LONG = {
    "experiment": "how_long",
    "benchmark": {"dataset": "stripes", "experiences": 1},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 1},
    "seeds": 1,
    "lengths": [1, 2],
}


def examples(text=RECIPES):
    """Return (path, code) of each example, in the order of the page."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [(block.partition("\n")[0].removeprefix("# "), block) for block in blocks]


def recipes():
    """Return the title and the text of each recipe."""
    parts = re.split(r"^### (.*)\n", RECIPES, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def module_of(path):
    """Return the module that a file of the source tree is; a new one where there is no such file."""
    parts = [part for part in Path(path).with_suffix("").parts if part != "__init__"]
    name = ".".join(parts if parts[0] == "mas" else ["mas", *parts])
    if (ROOT / path).exists():
        return importlib.import_module(name)
    sys.modules[name] = types.ModuleType(name)
    return sys.modules[name]


def apply_and_use(folder):
    """Run each example in the namespace of its file, use all of them, and print what came of it."""
    for path, code in examples():
        exec(compile(code, path, "exec"), vars(module_of(path)))  # noqa: S102
    import torch

    import mas

    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    shifted = torch.nn.Module()
    shifted.weight = weight
    shifted.forward = lambda x: x - shifted.weight
    mas.gradients.SamplePass._add_slow = None  # a call of the slow way would be an error
    x = torch.tensor([[3.0, 1.0], [0.0, 5.0]])
    by_rule = mas.mean_moments(shifted, [x], lambda output, batch: (output**2).sum(1))
    by_measure = mas.l1_importance(torch.nn.Linear(2, 1, bias=False), [x])
    run = mas.experiments.run(FORGETTING, output=folder / "forgetting", workers=1)
    how_long = mas.experiments.run(HOW_LONG, output=folder / "how_long", workers=1)
    found = {
        "rule": by_rule["weight"].tolist(),
        "measure": by_measure["weight"].tolist(),
        "failed": [*run.failed, *how_long.failed],
        "strategies": sorted(set(run.summary["strategy"])),
        "worst": run.summary[run.summary["score"] == "worst"]["mean"].tolist(),
        "final": run.results[run.results["trained_on"] == 1].groupby(["label", "seed"])["accuracy"].min().tolist(),
        "probe": run.traces["mean"].tolist(),
        "page": (folder / "forgetting" / "report.html").read_text(),
        "runs": list(dict.fromkeys(how_long.results["label"])),
        "headline": how_long.headline().table.rows,
        "how_long_page": (folder / "how_long" / "report.html").read_text(),
    }
    print(json.dumps(found))  # noqa: T201 - read by the test


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """Apply the recipes in a Python of their own: what they register stays there."""
    folder = tmp_path_factory.mktemp("recipes")
    code = (
        f"from pathlib import Path; from tests.test_recipes import apply_and_use; apply_and_use(Path({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_strategy_a_data_set_and_a_probe_can_be_run(used):
    assert used["failed"] == []
    assert used["strategies"] == ["magnitude", "naive"]
    assert used["probe"]
    assert all(value > 0 for value in used["probe"])


def test_a_layer_rule_is_used_and_right(used):
    # ∂/∂w Σ (x − w)² = −2 (x − w); mean of its size over the samples (3, 1) and (0, 5), w = (1, −2)
    assert used["rule"] == [3.0, 10.0]


def test_an_importance_measure_is_public_and_right(used):
    assert used["measure"] == [[1.5, 3.0]]  # mean of |x|


def test_a_score_is_in_the_summary_and_on_the_page(used):
    naive, magnitude = sum(used["final"][2:]) / 2, sum(used["final"][:2]) / 2
    assert used["worst"] == pytest.approx([naive, magnitude])
    assert "<th>worst</th>" in used["page"]


def test_a_kind_of_experiment_is_run_and_reported(used):
    assert used["runs"] == ["1-epochs", "2-epochs"]
    assert [row[0] for row in used["headline"]] == used["runs"]
    assert "how long to train" in used["how_long_page"]


@pytest.mark.parametrize("title", recipes())
def test_a_recipe_touches_two_places_at_most(title):
    paths = {path for path, _ in examples(recipes()[title])}
    assert 1 <= len(paths) <= 2
    for path in paths:
        known = (ROOT / path).exists() or "file in `" in recipes()[title] or "folder in `" in recipes()[title]
        assert known, f"{path} is new, and the recipe does not say so"


def test_every_law_has_tests_that_are_there():
    rows = re.findall(r"^\| (\d+)\. .*? \| (.*) \|$", TEXT, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 12))
    for _, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named
        for path, name in named:
            functions = [n for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)]
            assert name in {function.name for function in functions}, f"{path} has no test {name}"


def test_files_and_commands_that_it_names_are_there():
    new = {path for path, _ in examples()}
    for path in re.findall(r"`((?:mas|strategies|benchmarks|docs|tests)/[\w./]+\.\w+)`", TEXT):
        assert (ROOT / path).exists() or path in new, path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+[a-z])", TEXT)) & {"test", "check-fast", "lint", "results", "bench"} <= targets


def test_the_layers_are_those_of_the_test_of_imports():
    from tests.test_house import FLOORS

    picture = re.findall(r"```\n(cli .*?)```", TEXT, re.DOTALL)[0]
    lines = [set(re.sub(r"\(.*", "", line).split()) for line in picture.splitlines()]
    assert lines[::-1] == [floor for floor in FLOORS if floor != {"__main__"}]
