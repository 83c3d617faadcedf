"""The keys and names that may stand at a place are found by walking the models of a config."""

import ast
import inspect
import re
from typing import Any

import pytest

from mas.experiments.config import complaints as module
from mas.experiments.config.complaints import complaints, models_at
from mas.experiments.config.schema import Selection, Training
from mas.experiments.config.yaml_source import Key, Source
from mas.experiments.errors import UserError
from mas.experiments.kinds.critical_period.config import Trace, Window
from mas.experiments.read_config import load_config
from mas.experiments.registry import KINDS
from mas.strategies import PROBES, STRATEGIES

DIGITS = {"dataset": "digits"}
FORGETTING = {
    "experiment": "forgetting",
    "benchmark": DIGITS | {"experiences": 2},
    "strategies": [{"name": "naive"}, {"name": "mas", "lam": {"select": "continual"}}],
    "deficit": {"name": "blur", "end": 1},
    "probes": [{"name": "loss"}],
    "selection": {},
    "model": {},
    "training": {"schedule": {"name": "cosine", "epochs": 10}, "loss": {"name": "cross_entropy"}},
}
AFTER = {
    "experiment": "forgetting",
    "strategies": [{"name": "naive"}],
    "benchmark": DIGITS | {"stream": "deficit_then_clear", "deficit": {"name": "blur"}},
}
CRITICAL = {
    "experiment": "critical_period",
    "benchmark": DIGITS,
    "deficit": {"name": "blur"},
    "window": {"length": 1, "onsets": [0, 1]},
    "trace": {"end": 1, "probes": [{"name": "fisher_trace"}]},
    "removal": [1],
    "other_deficits": [{"name": "flip"}],
}
CONSOLIDATED = {
    "experiment": "consolidated_deficit",
    "benchmark": DIGITS,
    "deficit": {"name": "blur"},
    "lengths": [1],
    "strategies": [{"name": "ewc", "lam": [1, 2]}],
    "probes": [{"name": "loss"}],
}

TRAINING = [*Training.model_fields]
LABEL = ["name", "label"]
PROBE = [*LABEL, "data", "every", "unit", "spacing", "max_samples"]

ALLOWED: list[tuple[dict[str, Any], Key, list[str]]] = [
    (FORGETTING, (), [*KINDS["forgetting"].config.model_fields]),
    (FORGETTING, ("benchmark",), ["stream", "dataset", "experiences", "scenario", "class_order"]),
    (FORGETTING, ("model",), ["name", "head", "hidden", "activation", "norm"]),
    (FORGETTING, ("training",), TRAINING),
    (FORGETTING, ("training", "schedule"), ["name", "epochs"]),
    (FORGETTING, ("training", "optimizer"), ["name"]),
    (FORGETTING, ("training", "loss"), ["name", "label_smoothing"]),
    (FORGETTING, ("strategies", 0), LABEL),
    (FORGETTING, ("strategies", 1), [*LABEL, "lam", "norm"]),
    (FORGETTING, ("strategies", 1, "lam"), ["select", "start", "decay", "drop"]),
    (FORGETTING, ("deficit",), [*LABEL, "start", "end", "factor"]),
    (FORGETTING, ("probes", 0), PROBE),
    (FORGETTING, ("selection",), [*Selection.model_fields]),
    (AFTER, ("benchmark", "deficit"), ["name", "factor"]),
    (CRITICAL, (), [*KINDS["critical_period"].config.model_fields]),
    (CRITICAL, ("benchmark",), ["stream", "dataset"]),
    (CRITICAL, ("deficit",), [*LABEL, "factor"]),
    (CRITICAL, ("other_deficits", 0), LABEL),
    (CRITICAL, ("window",), [*Window.model_fields]),
    (CRITICAL, ("trace",), [*Trace.model_fields]),
    (CRITICAL, ("trace", "probes", 0), [*PROBE, "labels"]),
    (CONSOLIDATED, (), [*KINDS["consolidated_deficit"].config.model_fields]),
    (CONSOLIDATED, ("strategies", 0), [*LABEL, "lam"]),
    (CONSOLIDATED, ("probes", 0), PROBE),
]
IDS = [f"{data['experiment']}-{Source.name(place)}" for data, place, _ in ALLOWED]


@pytest.mark.parametrize(("data", "place", "first"), ALLOWED, ids=IDS)
def test_one_model_stands_at_each_place(data, place, first):
    (found,) = models_at(KINDS[data["experiment"]].config, place, data)
    assert list(found.model_fields)[: len(first)] == first


@pytest.mark.parametrize(("data", "place", "first"), ALLOWED, ids=IDS)
def test_an_unknown_key_is_told_what_is_allowed_there(data, place, first):
    if place == ("training", "optimizer"):
        pytest.skip("further keys are the optimizer's own")
    source = Source(data, [".".join(map(str, (*place, "first"))) + "=1"])
    (found,) = models_at(KINDS[data["experiment"]].config, place, source.data)
    with pytest.raises(UserError) as error:
        load_config(source.data)
    (line,) = error.value.lines
    key, _, allowed = line.partition("; allowed: ")
    assert key.startswith(f"{Source.name((*place, 'first'))}: unknown key")
    assert allowed == ", ".join(found.model_fields)


@pytest.mark.parametrize(
    ("data", "place", "tags"),
    [
        (FORGETTING, ("strategies", 0), [*STRATEGIES, "import"]),
        (CONSOLIDATED, ("strategies", 0), [*STRATEGIES, "import"]),
        (CRITICAL, ("trace", "probes", 0), [*PROBES, "import"]),
        (CRITICAL, ("benchmark",), ["whole", "import"]),
    ],
)
def test_every_model_that_may_stand_there_is_found(data, place, tags):
    models = models_at(KINDS[data["experiment"]].config, place, data, chosen=False)
    assert [tag for _, tag in module._tags(models)] == tags


@pytest.mark.parametrize(
    "place", [("nowhere",), ("strategies", 5), ("strategies", 0, "lam", "x"), ("benchmark", 0), ("seeds", 0), (0,)]
)
def test_where_nothing_can_stand_there_is_no_model(place):
    models = models_at(KINDS["forgetting"].config, place, FORGETTING)
    assert [model for model in models if place != ("strategies", 5)] == []


def test_no_table_of_keys_is_kept_by_hand():
    """Every key that a map may have is found in the models: only examples for missing keys are written down."""
    fields = {name for kind in KINDS.values() for name in kind.config.model_fields}
    examples = {*module._EXAMPLES}
    tree = ast.parse(inspect.getsource(module))
    written = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert written & fields <= examples


@pytest.mark.parametrize("kind", [FORGETTING, CRITICAL, CONSOLIDATED], ids=lambda data: data["experiment"])
@pytest.mark.parametrize("wrong", [3, "x", [], None, {"nope": 1}], ids=str)
def test_a_wrong_value_at_any_place_is_said_in_one_clear_line(kind, wrong):
    """Every key of every map, and every item of every list, is replaced in turn."""
    for place in _places(kind):
        changed = Source(kind).data
        _at(changed, place[:-1])[place[-1]] = wrong
        try:
            load_config(changed, try_data=False)
        except UserError as error:
            for line in error.lines:
                assert re.fullmatch(r"[\w.\[\]]+: .*(allowed: |missing; add it: |give |add it|does not fit: ).*", line)


def _places(data, place=()):
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for part, value in items:
        yield (*place, part)
        yield from _places(value, (*place, part))


def _at(data, place):
    for part in place:
        data = data[part]
    return data


def test_complaints_need_no_file():
    model = KINDS["forgetting"].config
    data = FORGETTING | {"seeds": 0}
    with pytest.raises(ValueError) as error:
        model.model_validate(data)
    assert complaints(Source(data), model, data, error.value) == [
        "seeds: found 0; allowed: greater than 0 or a valid list"
    ]
