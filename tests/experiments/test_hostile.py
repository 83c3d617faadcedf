"""Odd input that a user may give: each mistake is one plain line, and odd but valid values work."""

import pickle
from copy import deepcopy

import pandas as pd
import pytest

from mas.experiments.cell import Cell
from mas.experiments.errors import UserError
from mas.experiments.kinds.forgetting.tables import SELECTION_COLUMNS, chosen_rows
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config

FORGETTING = {
    "experiment": "forgetting",
    "benchmark": {"dataset": "digits", "experiences": 2},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 1},
    "seeds": 1,
    "strategies": [{"name": "naive"}],
}


def complaints(changes=(), **parts):
    """Return the lines that are said of a config with other parts."""
    with pytest.raises(UserError) as error:
        load_config(deepcopy(FORGETTING) | parts, changes)
    assert not any("\n" in line for line in error.value.lines)
    return "\n".join(error.value.lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment: 2020-99-99", "c.yaml:1: found 2020-99-99, which YAML reads as a date; quote it"),
        ("experiment: " + "9" * 5000, "c.yaml:1: found a number of 5,000 characters; give at most 100"),
    ],
)
def test_yaml_that_looks_like_a_value_and_is_none(text, message, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "c.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seeds=&a [*a]", "holds an anchor that contains itself"),
        ("seeds=2001-99-99", "found 2001-99-99, which YAML reads as a date; quote it"),
        ("strategies.².name=mas", "there is no ² in a list of 1"),
        ("strategies.0.label='a\n'", "strategies[0].label: found"),
    ],
)
def test_odd_changes_are_one_line(change, message):
    assert message in complaints([change])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": {"name": "vit_tiny", "width": 7}}, "model: heads is 3; a width of 7 needs a number that divides it"),
        ({"model": {"name": "alexnet", "weights": "x"}}, "model: weights is 'x'; alexnet has IMAGENET1K_V1, DEFAULT"),
        ({"model": {"name": "import", "function": "os:getcwd"}}, "model: TypeError: "),
        ({"strategies": [{"name": "import", "function": "os:getcwd"}]}, "strategies[0]: TypeError: "),
        ({"benchmark": {"stream": "import", "function": "os:getcwd"}}, "benchmark: TypeError: "),
        ({"benchmark": {"dataset": {"name": "import"}}}, "benchmark: dataset import: function is None"),
        ({"benchmark": {"dataset": {"name": "import", "function": 3}}}, "benchmark: dataset import: function is 3"),
        ({"deficit": {"name": "import", "function": "os:getcwd", "end": 1}}, "deficit: TypeError: "),
        ({"training": {"optimizer": {"name": "adam", "betas": "x"}}}, "training.optimizer: TypeError: "),
        ({"training": {"optimizer": {"name": "sgd", "nesterov": True}}}, "training.optimizer: Nesterov momentum"),
        (
            {"training": {"optimizer": {"name": "adam", "beta": 1}}},
            "training.optimizer: does not fit: adam has no option 'beta'; it has: betas",
        ),
        ({"training": {"schedule": {"name": "MultiStepLR", "milestones": 3}}}, "training.schedule: TypeError: "),
        (
            {"training": {"epochs": 2, "schedule": {"name": "StepLR", "step_size": 0}}},
            "training.schedule: ZeroDivisionError: ",
        ),
        ({"strategies": [{"name": "naive", "label": "a" * 101}]}, "allowed: at most 100 letters"),
        ({"strategies": [{"name": "mas", "lam": {"select": None}}]}, "found None; allowed: a list of values; for lam"),
    ],
)
def test_mistakes_that_only_building_shows_are_one_line(parts, message):
    assert message in complaints(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"seeds": {"select": [1, 2]}},
        {"save_model": {"select": [True, False]}},
        {"selection": {"validation": {"select": [0.1, 0.2]}}},
        {"probes": {"select": [[], [{"name": "accuracy"}]]}},
        {"training": {"device": {"select": ["cpu", "auto"]}}},
        {"strategies": [{"name": "naive", "label": {"select": ["a", "b"]}}]},
    ],
)
def test_what_no_accuracy_can_choose_is_refused(parts):
    assert "select: nothing to choose by ACC; give one value" in complaints(**parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"training": {"epochs": {"select": [1, [2, 1, 1]]}}}, "training.epochs: found 3 numbers"),
        (
            {"training": {"epochs": 5, "schedule": {"name": "cosine", "epochs": {"select": [9, 2]}}}},
            "schedule cosine: epochs is 2",
        ),
        ({"deficit": {"name": "blur", "end": {"select": [1, 50]}}}, "deficit: deficit from epoch 0 to 50"),
        (
            {
                "deficit": {"select": [None, {"name": "blur", "end": 1}]},
                "strategies": [{"name": "naive"}, {"name": "joint"}],
            },
            "deficit: joint trains all experiences at once",
        ),
    ],
)
def test_every_value_to_choose_from_is_tried(parts, message):
    assert message in complaints(**parts)


def test_options_of_imported_functions_are_taken():
    model = {"name": "import", "function": "mas.experiments.networks:mlp", "hidden": {"select": [[3], [5]]}}
    config = load_config(FORGETTING | {"model": model})
    assert config.model.arguments() == {"hidden": [3]}
    assert [str(tried.choice) for tried in Plan(config).tries["naive"]] == ["model.hidden=[3]", "model.hidden=[5]"]
    unknown = {"name": "import", "function": "mas.experiments.networks:mlp", "hiden": [3]}
    assert "model: mas.experiments.networks:mlp has no option 'hiden'" in complaints(model=unknown)


def test_cells_of_long_or_odd_values_have_names_for_files():
    settings = Plan(load_config(FORGETTING)).every_cell()[0].settings
    labels = ["mas~lam=0.1", "naive~path=a/b", "naive~path=a_b", "naive~hidden=" + "4" * 300, 'x~model={"name": "mlp"}']
    ids = [Cell(label, 0, settings).id for label in labels]
    assert ids[0] == "mas~lam=0.1-seed0"
    assert len(set(ids)) == len(labels)
    assert all(len(name) < 200 and not set(name) & set('/\\"{} :') for name in ids)


@pytest.mark.parametrize(
    "parts",
    [
        {"strategies": [{"name": "naive"}, {"name": "mas", "lam": {"select": "continual"}}]},
        {"training": {"optimizer": {"name": "adam", "betas": [0.9, 0.99]}, "schedule": {"name": "exponential"}}},
        {"deficit": {"name": "blur", "end": 1}, "probes": [{"name": "fisher_trace"}]},
        {"model": {"name": "import", "function": "mas.experiments.networks:mlp", "hidden": [3]}},
    ],
)
def test_cells_can_be_sent_to_workers(parts):
    for cell in Plan(load_config(FORGETTING | parts)).every_cell():
        sent = pickle.loads(pickle.dumps(cell))  # noqa: S301 - what multiprocessing does
        assert sent == cell
        assert sent.settings.plain() == cell.settings.plain()
        assert deepcopy(cell) == cell


def test_remarks_of_choices_with_commas_in_their_values():
    values = ["lam=1.0,hidden=[4]", "lam=1.0,hidden=[8, 8]", 'lam=2.0,hidden={"a": 1, "b": 2}']
    rows = [
        ("mas", v, 0, None, "finished", acc, 1.0, acc == 0.9) for v, acc in zip(values, [0.1, 0.9, 0.2], strict=True)
    ]
    shown = chosen_rows(pd.DataFrame(rows, columns=SELECTION_COLUMNS))
    assert shown["remark"].tolist() == ["", "lam at an end of what was tried: better values may lie beyond", ""]
