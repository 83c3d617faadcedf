"""Faults of configs: each ends soon, in one plain line that says what was found and how to mend it."""

import math
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from copy import deepcopy
from urllib.error import URLError

import pytest
import torch
from torch import nn

from mas.experiments import memory, trial
from mas.experiments.config.plain_yaml import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, read_yaml
from mas.experiments.config.schema import (
    DEFICIT_MODELS,
    LOSS_MODELS,
    MODEL_MODELS,
    PROBE_MODELS,
    SCHEDULE_MODELS,
    SCHEDULED_DEFICIT_MODELS,
    STRATEGY_MODELS,
    STREAM_MODELS,
)
from mas.experiments.config.search import put, value_at
from mas.experiments.errors import UserError
from mas.experiments.optimizers import OPTIMIZERS
from mas.experiments.options import Options
from mas.experiments.read_config import load_config
from tools.fuzz_values import EXTREMES, check_lines

FORGETTING = {
    "experiment": "forgetting",
    "benchmark": {"dataset": "digits", "experiences": 2},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 1},
    "seeds": 1,
    "strategies": [{"name": "naive"}],
}
CRITICAL = {
    "experiment": "critical_period",
    "benchmark": {"dataset": "digits"},
    "deficit": {"name": "blur"},
    "removal": [1, 2],
    "window": {"length": 1, "onsets": [0, 1]},
    "trace": {"end": 1},
}
CONSOLIDATED = {
    "experiment": "consolidated_deficit",
    "benchmark": {"dataset": "digits"},
    "deficit": {"name": "blur"},
    "lengths": [1, 2],
    "strategies": [{"name": "ewc", "lam": [1.0, 2.0]}],
}
TASK_MAP = {
    "experiment": "task_map",
    "streams": [{"dataset": "digits", "experiences": 2}],
    "probe_network": {"benchmark": {"dataset": "digits"}, "training": {"epochs": 1}},
    "embedding": {},
}
SECONDS = 10.0
BOMB = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
MERGES = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]


def complaints(source, changes=(), try_data=True):
    """Return the lines that are said of a config; each is one line, and short."""
    began = time.process_time()  # a busy machine takes longer by the clock
    with pytest.raises(UserError) as error:
        load_config(source, changes, try_data=try_data)
    assert time.process_time() - began < SECONDS
    check_lines(error.value.lines)
    return error.value.lines


def with_parts(**parts):
    return deepcopy(FORGETTING) | parts


HOSTILE_YAML = {
    "aliases": ("x: {a0: &a0 [1], " + ", ".join(BOMB) + "}", "found more than 100,000 values"),
    "merged aliases": ("x: {a0: &a0 {b: 1}, " + ", ".join(MERGES) + "}", "found more than 100,000 values"),
    "deep aliases": (
        "x: {a0: &a0 [1], " + ", ".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60)) + "}",
        "more than 50 deep",
    ),
    "an alias of itself": ("x: &a [*a]", "holds an anchor that contains itself; write it out"),
    "a merge of itself": ("x: &a {<<: *a}", "holds an anchor that contains itself; write it out"),
    "a date": ("x: 2020-01-01", "found 2020-01-01, which YAML reads as a date; quote it: '2020-01-01'"),
    "a time": ("x: 2020-01-01 10:00:00", "which YAML reads as a date; quote it"),
    "no date": ("x: !!timestamp abc", "which YAML reads as a date; quote it"),
    "no int": ("x: !!int abc", "found 'abc', which is no int"),
    "an empty int": ("x: !!int ''", "found '', which is no int"),
    "no float": ("x: !!float abc", "found 'abc', which is no float"),
    "no bool": ("x: !!bool abc", "found 'abc', which is no bool"),
    "bytes": ("x: !!binary abc", "found the tag !!binary"),
    "a set": ("x: !!set {a, b}", "found the tag !!set"),
    "an object": ("x: !!python/object:os.system a", "could not determine a constructor for the tag"),
    "5,000 digits": ("x: " + "9" * 5000, "found a number of 5,000 characters; give at most 100"),
    "5,000 hexadecimal digits": ("x: 0x" + "9" * 5000, "found a number of 5,002 characters"),
    "3,000 sexagesimal digits": ("x: 1" + ":59" * 1000, "found a number of 3,001 characters"),
    "3,000 lists": ("x: " + "[" * 3000 + "]" * 3000, "found maps or lists more than 50 deep; write it flatter"),
    "3,000 maps": ("x: " + "{a: " * 3000 + "1" + "}" * 3000, "found maps or lists more than 50 deep"),
    "3,000 open lists": ("x: " + "[" * 3000, "found maps or lists more than 50 deep"),
    "many values": ("x: [" + "1," * 100_001 + "]", "found more than 100,000 values"),
    "a key that is a list": ("x: {? [a] : 1}", "found a list or a map as a key; give text"),
    "a key that stands twice": ("x: {a: 1, a: 2}", "a stands twice, first in line"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_hostile_yaml_is_one_line_in_files_and_changes(text, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"experiment: forgetting\n{text}")
    (line,) = complaints(path)
    assert line.startswith(f"{path}:2: ")
    assert message in line
    (line,) = complaints(FORGETTING, [text.replace(": ", "=", 1)])
    assert line.startswith("--set x=")
    assert message in line


@pytest.mark.parametrize("content", ["x" * (MAX_CHARACTERS + 1), "[" * (MAX_CHARACTERS + 1)], ids=["text", "lists"])
def test_a_huge_file_is_not_read_to_its_end(content, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    (line,) = complaints(tmp_path / "c.yaml")
    assert "found more than 1,000,000 characters; expected a config, which is shorter" in line


def test_what_stays_within_the_bounds_of_yaml_is_read():
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_yaml(nested)[0]
    assert len(read_yaml("[" + "1," * (MAX_VALUES - 1) + "]")[0]) == MAX_VALUES - 1
    assert read_yaml("{a: &a [1, 2], b: *a, c: {<<: {d: 9e-1}}}") == (
        {"a": [1, 2], "b": [1, 2], "c": {"d": 0.9}},
        dict.fromkeys([("a",), ("a", 0), ("a", 1), ("b",), ("b", 0), ("b", 1), ("c",), ("c", "<<")], 1)
        | {("c", "<<", "d"): 1},
    )
    assert read_yaml("'2020-01-01'")[0] == "2020-01-01"
    assert read_yaml("9" * 100)[0] == int("9" * 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a." * 3000 + "b=1", "found a key of 3,001 parts; give at most 50"),
        (f"strategies.{'9' * 5000}.name=mas", "there is no 999"),
        (f"{'a.' * 45}b={'[' * 45 + ']' * 45}", "more than 50 deep"),
    ],
)
def test_long_changes_are_one_line(change, message):
    (line,) = complaints(FORGETTING, [change])
    assert message in line


def test_data_from_python_have_the_same_bounds():
    data = with_parts()
    data["model"]["hidden"] = data
    (line,) = complaints(data)
    assert line == "config: found maps or lists more than 50 deep; write it flatter"
    (line,) = complaints(with_parts(seeds=10**5000), try_data=False)
    assert line.startswith("seeds: found a number of 16,610 bits; allowed: ")


TOO_LARGE = [
    ({"training": {"batch_size": 2**63}}, "training.batch_size: found 9223372036854775808; allowed: less than"),
    ({"training": {"epochs": 10**16}}, "training.epochs: found 10000000000000000; allowed: less than"),
    ({"training": {"lr": 1e308}}, "training.lr: found 1e+308; allowed: less than"),
    ({"training": {"weight_decay": 1e308}}, "training.weight_decay: found 1e+308; allowed: less than"),
    ({"strategies": [{"name": "mas", "lam": 1e308}]}, "strategies[0].lam: found 1e+308; allowed: less than"),
    (
        {"strategies": [{"name": "mas", "lam": {"select": [1.0, 1e308]}}]},
        "strategies[0].lam.select[1]: found 1e+308; allowed: less than",
    ),
    (
        {"strategies": [{"name": "mas", "lam": {"select": [float(n + 1) for n in range(1001)]}}]},
        "strategies[0].lam.select: found 1,001 values; allowed: at most 1,000",
    ),
    (
        {
            "training": {"lr": {"select": [0.1 / (n + 1) for n in range(34)]}},
            "strategies": [{"name": "mas", "lam": {"select": [float(n + 1) for n in range(30)]}}],
        },
        "training.lr.select: found 1,020 combinations of values; allowed: at most 1,000",
    ),
    ({"seeds": 300_000}, "seeds: found 300000; allowed: less than or equal to 10000"),
    ({"seeds": list(range(10_001))}, "seeds: found [0, 1, 2,"),
    ({"seeds": [2**63]}, "seeds[0]: found 9223372036854775808; allowed: less than"),
    ({"selection": {"seeds": list(range(10_001))}}, "selection.seeds: found [0, 1, 2,"),
    ({"strategies": [{"name": "naive", "label": f"a{n}"} for n in range(2001)]}, "strategies: found 2,001 runs"),
    (
        {"strategies": [{"name": "naive", "label": f"a{n}"} for n in range(11)], "seeds": 10_000},
        "seeds: found 11 runs with 10,000 seeds, 110,000 cells; allowed: at most 100,000",
    ),
    ({"strategies": [3] * 101}, "config: and 1 more mistakes; mend these first"),
    (
        {"benchmark": {"stream": "permuted", "dataset": "digits", "experiences": 10**6}},
        "benchmark.experiences: found 1000000; allowed: less than or equal to 10000",
    ),
    ({"model": {"name": "mlp", "hidden": [1] * 201}}, "model.hidden: found [1, 1,"),
    ({"model": {"name": "vit_tiny", "depth": 10**9}}, "model.depth: found 1000000000; allowed: less than"),
]


@pytest.mark.parametrize(("parts", "message"), TOO_LARGE, ids=[message[:40] for _, message in TOO_LARGE])
def test_numbers_that_cannot_work_are_refused_before_anything_is_built(parts, message):
    assert complaints(with_parts(**parts), try_data=False)[-1].startswith(message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CRITICAL | {"removal": list(range(2001))}, "removal: found 2,003 runs"),
        (CONSOLIDATED | {"lengths": list(range(1, 1002))}, "lengths: found 2,002 runs"),
        (TASK_MAP | {"streams": [{"label": f"a{n}"} for n in range(2001)]}, "streams: found 2,001 runs"),
    ],
    ids=["critical_period", "consolidated_deficit", "task_map"],
)
def test_runs_are_counted_before_they_are_planned(config, message):
    (line,) = complaints(config, try_data=False)
    assert line.startswith(message)


def test_a_run_may_be_very_long():
    parts = {"epochs": 10**12, "schedule": {"name": "StepLR", "step_size": 10}}
    assert load_config(with_parts(training=parts)).training.epochs == 10**12


@pytest.mark.parametrize(
    ("model", "gigabytes"),
    [
        # weights and their gradients, 4 bytes each: 2 · 4 · (64·n + n + the head's 5·n) for 64 pixels and 5 classes
        ({"name": "mlp", "hidden": [10**9]}, f"{8 * (65 + 5):,.1f} GB"),
        ({"name": "small_cnn", "width": 10**6}, " GB"),
        ({"name": "resnet18", "width": 10**6}, " GB"),
        ({"name": "vit_tiny", "width": 3 * 10**8}, " GB"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_a_network_that_does_not_fit_the_memory_is_not_built(model, gigabytes, monkeypatch):
    monkeypatch.setattr(trial, "model_for", lambda *args, **kwargs: pytest.fail("it was built"))
    (line,) = complaints(with_parts(model=model))
    assert line.startswith("model: the network needs ")
    assert f"{gigabytes} for its weights and their gradients, and this machine has" in line


def test_networks_are_compared_with_the_memory_there_is(monkeypatch):
    linear = nn.Linear(10, 10)
    assert memory.needed_bytes(nn.BatchNorm1d(3)) == 2 * 6 * 4 + 6 * 4 + 8  # running mean and variance, and a count
    assert memory.needed_bytes(linear) == 2 * 110 * 4
    monkeypatch.setattr(memory, "memory_bytes", lambda: 880)
    memory.check_fits(lambda: nn.Linear(10, 10))
    monkeypatch.setattr(memory, "memory_bytes", lambda: 879)
    with pytest.raises(ValueError, match="make it smaller"):
        memory.check_fits(lambda: nn.Linear(10, 10))
    monkeypatch.setattr(memory, "memory_bytes", lambda: None)
    memory.check_fits(lambda: nn.Linear(10, 10**9))


def test_a_container_limits_the_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", tmp_path / "memory.max")
    whole = memory.memory_bytes()
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.memory_bytes() == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.memory_bytes() == whole


MODULE = """
def raises(shape):
    raise RuntimeError("no [bold]model[/bold]\\nhere")

def exits(shape):
    raise SystemExit(4)

class Untold(Exception):
    def __str__(self):
        raise ValueError

def untold(shape):
    raise Untold

def nothing(shape):
    return None
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("own_models:raises", "RuntimeError: no [bold]model[/bold] here"),
        ("own_models:exits", "SystemExit: 4"),
        ("own_models:untold", "Untold: it cannot be told"),
        ("own_models:nothing", "the model is a NoneType; expected a torch.nn.Module"),
        ("raising:x", "that can be imported (RuntimeError: boom second line)"),
        ("exiting:x", "that can be imported (SystemExit: 3)"),
        ("...:x", "that can be imported (TypeError"),
        ("", "that can be imported (ValueError: Empty module name)"),
    ],
)
def test_models_of_ones_own_that_cannot_be_built(function, message, tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODULE)
    (tmp_path / "raising.py").write_text("raise RuntimeError('boom\\nsecond line')")
    (tmp_path / "exiting.py").write_text("import sys\nsys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = complaints(with_parts(model={"name": "import", "function": function}))
    assert line.startswith("model: ")
    assert message in line
    sys.modules.pop("own_models", None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "torchvision", "model": "resnet18", "weights": "zzz"}, "resnet18 has IMAGENET1K_V1, DEFAULT"),
        ({"name": "torchvision", "model": "squeezenet1_0", "weights": "DEFAULT"}, "SqueezeNet has no linear layer"),
        ({"name": "vit_tiny", "width": 192, "heads": 5}, "heads is 5; a width of 192 needs a number that divides it"),
        ({"name": "vit_tiny", "patch": 3}, "patch is 3; images of 8x8 need one that divides their side"),
    ],
)
def test_models_that_fail_to_build(model, message):
    (line,) = complaints(with_parts(model=model))
    assert line.startswith("model: ")
    assert line.endswith(message) or message in line


@pytest.mark.parametrize("error", [URLError("no route"), TimeoutError("timed out"), socket.gaierror("no name")])
def test_weights_without_a_network(error, monkeypatch, tmp_path):
    waits = []

    def fails(*args, **kwargs):
        waits.append(socket.getdefaulttimeout())
        raise error if isinstance(error, URLError | TimeoutError) else URLError(error)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", fails)
    monkeypatch.setattr(urllib.request, "urlopen", fails)
    (line,) = complaints(with_parts(model={"name": "torchvision", "model": "resnet18", "weights": "DEFAULT"}))
    assert line.startswith("model: the weights cannot be downloaded (")
    assert f"put the file into {tmp_path}/checkpoints, or leave weights out" in line
    assert waits == [5.0]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    "probe",
    [
        {"name": "trainability", "steps": 10**12},
        {"name": "noise_curve", "betas": [0.1 * n for n in range(1, 2000)], "prior_std": 1.0, "draws": 10**12},
    ],
    ids=["steps", "draws"],
)
def test_a_probe_is_tried_in_small(probe):
    (found,) = load_config(with_parts(probes=[probe])).probes
    arguments = found.arguments()
    assert {name: arguments[name] for name in probe.keys() & arguments.keys()} == {
        name: value for name, value in probe.items() if name != "name"
    }


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optimizer": {"name": "rmsprop", "alpha": 1e308}}, "training.optimizer: "),
        ({"schedule": {"name": "ConstantLR", "factor": math.nan}}, "training.schedule: "),
        ({"epochs": 3, "schedule": {"name": "StepLR", "step_size": 1, "gamma": 1e308}}, "would be multiplied by inf"),
    ],
)
def test_what_only_a_step_of_training_shows(training, message):
    (line,) = complaints(with_parts(training=training))
    assert message in line


NEEDED = {  # options without a default
    "information": {"beta": 0.1, "prior_std": 1.0},
    "noise_curve": {"betas": [0.1], "prior_std": 1.0},
    "torchvision": {"model": "resnet18"},
    "sequence": {"datasets": ["digits"]},
    "mixture": {"datasets": ["digits"]},
    "deficit_then_clear": {"deficit": {"name": "blur"}},
    "CosineAnnealingLR": {"T_max": 10},
    "CosineAnnealingWarmRestarts": {"T_0": 10},
    "ExponentialLR": {"gamma": 0.9},
    "MultiStepLR": {"milestones": [2]},
    "StepLR": {"step_size": 2},
}
_ENTRIES = [  # a config, the place of the entry, the key of its name, the models that may stand there
    (FORGETTING, ("strategies", 0), "name", STRATEGY_MODELS),
    (FORGETTING, ("benchmark",), "stream", STREAM_MODELS),
    (FORGETTING, ("model",), "name", MODEL_MODELS),
    (FORGETTING | {"probes": [{}]}, ("probes", 0), "name", PROBE_MODELS),
    (FORGETTING, ("deficit",), "name", SCHEDULED_DEFICIT_MODELS),
    (CRITICAL, ("deficit",), "name", DEFICIT_MODELS),
    (FORGETTING, ("training", "schedule"), "name", SCHEDULE_MODELS),
    (FORGETTING, ("training", "loss"), "name", LOSS_MODELS),
    (FORGETTING, ("training", "optimizer"), "name", OPTIMIZERS),
]
_MAPS = [  # a config, and the places of its maps
    (FORGETTING | {"selection": {}}, [(), ("training",), ("selection",)]),
    (CRITICAL, [(), ("window",), ("trace",)]),
    (CONSOLIDATED, [(), ("strategies", 0)]),
    (TASK_MAP, [(), ("streams", 0), ("probe_network",), ("probe_network", "training"), ("embedding",)]),
]


def _all_maps():
    """Yield (config, place of a map in it) for each kind of map and each entry of each registry."""
    for config, places in _MAPS:
        for place in places:
            yield config, place
    for config, place, key, models in _ENTRIES:
        for name in models:
            if name != "import":
                end = {"end": 1} if models is SCHEDULED_DEFICIT_MODELS else {}
                changed = deepcopy(config)
                put(changed, place, {key: name} | NEEDED.get(name, {}) | end)
                yield changed, place


MAPS = list(_all_maps())
MAP_IDS = [f"{config['experiment']}-{place}-{str(value_at(config, place))[:40]}" for config, place in MAPS]


def _fields(config, place):
    """Return the names of the fields of a map of a config."""
    found = value_at(load_config(config, try_data=False), ()) if not place else load_config(config, try_data=False)
    for part in place:
        found = found[part] if isinstance(part, int) else getattr(found, part)
    assert isinstance(found, Options)
    return [name for name in type(found).model_fields if name != "data_root"]  # a folder that is there would be used


@pytest.mark.parametrize(("config", "place"), MAPS, ids=MAP_IDS)
def test_every_field_at_its_extremes_is_valid_or_refused_by_its_name(config, place):
    for field in _fields(config, place):
        for value in EXTREMES:
            changed = deepcopy(config)
            put(changed, (*place, field), value)
            try:
                load_config(changed, try_data=False)
            except UserError as error:
                check_lines(error.lines)
                names = {field, *map(str, place)}
                found = [line for line in error.lines if any(name in line for name in names)]
                if not found:
                    pytest.fail(f"{field}: {value!r} gave {error.lines}")


def test_a_sample_of_extremes_is_built():
    """What the types allow is valid, or refused when it is built: nothing else is raised."""
    generator = random.Random(0)  # noqa: S311 - not a secret
    small = [(config, place) for config, place in MAPS if "torchvision" not in str(config)]
    for config, place in generator.sample(small, 40):
        field = generator.choice(_fields(config, place))
        changed = deepcopy(config)
        put(changed, (*place, field), generator.choice(EXTREMES))
        try:
            load_config(changed)
        except UserError as error:
            check_lines(error.lines)


def test_a_terminal_that_knows_only_ascii():
    """Rich writes to the stream as it is; typer's own lines are in UTF-8 then."""
    code = "import mas.cli as c; c.app = lambda: c._console().print('Ω − [/b]'); c.main()"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, rb"\u03a9 \u2212 [/b]" + b"\n", b"")


def test_a_mistake_is_one_line_with_exit_code_2_also_in_ascii(tmp_path):
    (tmp_path / "[red]Ω.yaml").write_text("experiment: Ω\n", encoding="utf-8")
    command = [sys.executable, "-m", "mas", "check", str(tmp_path / "[red]Ω.yaml")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, env=environment, check=False)
    (line,) = found.stderr.decode("utf-8").splitlines()
    assert found.returncode == 2
    assert line.startswith("error: ")
    assert "[red]Ω.yaml:1: experiment: found 'Ω'; allowed: forgetting" in line


@pytest.mark.parametrize("name", ["[/b].yaml", "[red].yaml", ":smile:.yaml"])
def test_markup_in_names_is_shown_as_it_is(name, tmp_path, capsys, monkeypatch):
    from mas.cli import _console, _print
    from mas.experiments.report.sections import Headline, Table

    _print(Headline(name, Table([name, "b"], [[name, "[/b]"]]), []))
    _console().print(name)
    assert capsys.readouterr().out.count(name) == 4
