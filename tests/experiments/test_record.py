"""A record's JSON form: it comes back as it was, whatever it holds."""

import json
import math
import pickle
from dataclasses import fields, replace

import pytest

from mas.experiments.cell import Cell, SelectionMade
from mas.experiments.config.schema import (
    MODEL_MODELS,
    PROBE_MODELS,
    SCHEDULED_DEFICIT_MODELS,
    STRATEGY_MODELS,
    STREAM_MODELS,
)
from mas.experiments.record import VERSION, CellRecord, EmbeddingRecord, OldFormatError, Outcome, ProbeRow, StrengthTry
from mas.strategies import PROBES, STRATEGIES
from tests.experiments.builders import first_cell, make_record, settings_of

ROW = ProbeRow(
    label="traces", probe="fisher_trace", data="train", experience=1, epoch=2, iteration=30, part="0.1", value=0.1
)
FULL = Outcome(
    untrained=[0.1, 1 / 3],
    accuracy=[[None, None], [0.1 + 0.2, 1.0]],
    tries=[[], [StrengthTry(0.0, 0.9, 1.5), StrengthTry(1e-300, 0.7, 0.25)]],
    probes=[ROW, replace(ROW, part="", value=1e308, experience=0), replace(ROW, label="ranks", probe="rank")],
    embeddings=[EmbeddingRecord("0 or 1", [0.1, 1e-300], [1 / 3, 2.0], "c0ffee", 10, 2, "exact", 1e-6, 0.25, 0.875)],
    probe_accuracy=0.96,
    status="diverged",
    reason='loss is nan in experience 0, "quoted", ünïcode\nand a second line',
    seconds=12.345,
)


def again(record):
    return CellRecord.from_json(record.to_json())


def test_every_field_of_an_outcome_comes_back():
    record = CellRecord(Cell("mas-2", 7, settings_of("mas")), FULL)
    assert again(record) == record
    for field in fields(Outcome):  # a field that is added must be given here
        assert getattr(FULL, field.name) != getattr(Outcome(), field.name), field.name
    assert again(record).to_json() == record.to_json()


def test_an_empty_outcome_comes_back():
    record = CellRecord(Cell("naive", 0, settings_of("naive")), Outcome())
    assert again(record) == record
    assert math.isnan(again(CellRecord(record.cell, replace(FULL))).outcome.final_acc())


def test_values_that_are_not_finite_come_back():
    """A try that diverged has no accuracy; a probe of a broken network may be infinite."""
    tries = [[StrengthTry(1.0, math.nan, 0.1)]]
    probes = [replace(ROW, value=value) for value in (math.inf, -math.inf, math.nan)]
    found = again(make_record(tries=tries, probes=probes)).outcome
    assert math.isnan(found.tries[0][0].accuracy)
    assert [row.value for row in found.probes[:2]] == [math.inf, -math.inf]
    assert math.isnan(found.probes[2].value)


def test_the_form_says_its_version_and_is_plain():
    record = CellRecord(Cell("mas", 7, settings_of("mas")), FULL)
    data = json.loads(record.to_json())
    assert data["version"] == VERSION == 2
    assert (data["label"], data["seed"]) == ("mas", 7)
    options = settings_of("mas").strategy.arguments()
    assert options.pop("max_samples") is None  # what is not set is left out
    assert data["settings"]["strategy"] == {"name": "mas", **options}
    assert data["accuracy"] == [[None, None], [0.1 + 0.2, 1.0]]
    assert data["tries"][1][0] == {"strength": 0.0, "accuracy": 0.9, "seconds": 1.5}
    assert data["probes"][0] == {
        **{"label": "traces", "probe": "fisher_trace", "data": "train", "experience": 1},
        **{"epoch": 2, "iteration": 30, "part": "0.1", "value": 0.1},
    }


@pytest.mark.parametrize("version", [None, 1, 3, "2"])
def test_another_version_is_refused(version):
    data = json.loads(make_record().to_json())
    del data["version"]
    data |= {} if version is None else {"version": version}
    message = f"is of format {version or 1}; this version of mas reads format 2"
    with pytest.raises(OldFormatError, match=message):
        CellRecord.from_json(json.dumps(data))


# Settings: whatever a config may say comes back.


def settings_again(settings):
    cell = Cell("x", 0, settings)
    return again(CellRecord(cell, Outcome())).cell.settings


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategys_settings_come_back(name):
    settings = settings_of(name)
    assert settings_again(settings) == settings
    assert type(settings_again(settings).strategy) is STRATEGY_MODELS[name]


@pytest.mark.parametrize("name", STRATEGIES)
def test_law_9_every_strategys_cell_travels_to_a_worker(name):
    cell = first_cell(name, training={"optimizer": {"name": "adamw", "betas": [0.8, 0.9]}, "lr": 0.1 + 0.2})
    assert pickle.loads(pickle.dumps(cell)) == cell  # noqa: S301 - our own bytes


def test_law_9_what_is_set_to_none_travels_as_none():
    """In a file it is left out; to a worker everything goes."""
    selection = SelectionMade(validation=0.1, options={"max_samples": [None, 3]})
    cell = Cell("mas", 0, settings_of("mas").model_copy(update={"selection": selection}))
    assert pickle.loads(pickle.dumps(cell)) == cell  # noqa: S301 - our own bytes


@pytest.mark.parametrize("name", PROBES)
def test_every_probes_settings_come_back(name):
    needed = {"information": {"beta": 0.1, "prior_std": 1.0}, "noise_curve": {"betas": [0.1, 1.0], "prior_std": 1.0}}
    common = {"name": name, "label": "own", "every": "end", "data": ["test"]}
    probe = PROBE_MODELS[name].model_validate(common | needed.get(name, {}))
    settings = settings_of("naive").model_copy(update={"probes": [probe]})
    assert settings_again(settings) == settings


@pytest.mark.parametrize(
    ("place", "models", "options"),
    [
        (
            "benchmark",
            STREAM_MODELS,
            {"stream": "rotated", "dataset": {"name": "image_folder", "path": "p", "size": 8}},
        ),
        ("benchmark", STREAM_MODELS, {"stream": "sequence", "datasets": ["digits", {"name": "mnist"}]}),
        ("benchmark", STREAM_MODELS, {"stream": "deficit_then_clear", "deficit": {"name": "blur"}}),
        ("model", MODEL_MODELS, {"name": "torchvision", "model": "alexnet", "weights": "DEFAULT", "head": "growing"}),
        (
            "model",
            MODEL_MODELS,
            {"name": "import", "function": "a.b:c", "width": 3, "names": ["x"], "deep": {"y": 1.5}},
        ),
        ("deficit", SCHEDULED_DEFICIT_MODELS, {"name": "noise", "start": 1, "end": 3}),
        ("deficit", SCHEDULED_DEFICIT_MODELS, {"name": "import", "function": "a:b", "end": 3, "share": 0.5}),
        ("strategy", STRATEGY_MODELS, {"name": "mas", "lam": {"select": "continual", "start": 10.0, "decay": 0.1}}),
        ("strategy", STRATEGY_MODELS, {"name": "import", "function": "a:b", "lam": 0.5}),
    ],
)
def test_every_part_of_the_settings_comes_back(place, models, options):
    part = models[options.get("stream") or options["name"]].model_validate(options)
    settings = settings_of("naive").model_copy(update={place: part})
    found = settings_again(settings)
    assert found == settings
    assert getattr(found, place).arguments() == part.arguments()


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": {"name": "adamw", "betas": [0.8, 0.9], "amsgrad": True}},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.001},
        {"schedule": {"name": "StepLR", "step_size": 2, "gamma": 0.5}},
        {"schedule": {"name": "cosine", "epochs": 7}},
        {"loss": {"name": "cross_entropy", "label_smoothing": 0.25}},
        {"loss": "squared_error"},
        {"epochs": [1, 2], "reset_optimizer": False, "device": "cuda:1"},
    ],
)
def test_every_way_of_training_comes_back(changed):
    settings = first_cell("naive", training=changed).settings
    assert settings_again(settings) == settings
    assert settings_again(settings).plain() == settings.plain()


def test_how_values_were_chosen_comes_back():
    made = SelectionMade(validation=0.1, seeds=[7, 8], options={"lam": [0.1, 1.0], "norm": ["l2", None]})
    settings = settings_of("mas").model_copy(update={"selection": made})
    assert settings_again(settings) == settings
    assert settings_again(settings).selection.options == made.options


def test_what_is_set_to_none_stays_none():
    """None is left out of the file; where the default is another value it must be written."""
    for models in (STRATEGY_MODELS, PROBE_MODELS, STREAM_MODELS, MODEL_MODELS, SCHEDULED_DEFICIT_MODELS):
        for name, model in models.items():
            for key, field in model.model_fields.items():
                takes_none = "None" in str(field.annotation) or field.default is None
                assert not (takes_none and field.default is not None), f"{name}.{key}"
