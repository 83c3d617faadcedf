"""Parts of the user's own by ``import:``, from a module beside the YAML file."""

import itertools
import sys

import numpy as np
import pytest

from mas import experiments
from mas.experiments.build import build_benchmark
from mas.experiments.errors import UserError
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.training import train_cell

MODULE = '''
import torch
from torch import nn
from avalanche.training.supervised import Naive

from mas.benchmarks import Images, load_dataset, split


def body(shape, units, activation="relu"):
    """Return a body."""
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, units), nn.ReLU() if activation == "relu" else nn.Tanh())


class Slower(Naive):
    """Naive with a smaller rate."""

    def __init__(self, factor: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        for group in self.optimizer.param_groups:
            group["lr"] *= factor


def halves(keep: int = 100):
    """Return a part of the digits."""
    return tuple(part.subset(torch.arange(keep)) for part in load_dataset("digits"))


def not_data():
    return 3


def not_a_stream(seed: int):
    return [seed]


def pairs(count: int = 2, validation: float = 0.0, seed: int = 0):
    """Return a stream."""
    return split("digits", count, scenario="domain", validation=validation, seed=seed)


def needs_seed(seed: int):
    """Return a stream."""
    return pairs(seed=seed)


def takes_no_seed():
    """Return a stream that is the same for each seed."""
    return pairs()


def darker(x, y, generator, share: float):
    """Return images with less light."""
    return x * (1 - share), y


def norm(model, batches, forward, order: int = 2):
    """Return the norm of the weights."""
    return {"": float(torch.cat([p.detach().flatten() for p in model.parameters()]).norm(order))}


def broken(model, batches, forward):
    raise KeyError("no\\nsuch thing")


def broken_body(shape):
    raise RuntimeError("out of\\nideas")


THREE = 3
'''

TEXT = """\
experiment: forgetting
benchmark: {benchmark}
model: {model}
training: {{epochs: 1, batch_size: 64}}
strategies: [{strategy}]
deficit: {deficit}
probes: {probes}
seeds: 1
"""
PLAIN = {
    "benchmark": "{dataset: digits, experiences: 2, scenario: domain}",
    "model": "{name: mlp, hidden: [8]}",
    "strategy": "{name: naive}",
    "deficit": "null",
    "probes": "[]",
}
LINES = {"benchmark": 2, "model": 3, "strategy": 5, "deficit": 6, "probes": 7}
OWN = {  # part -> (what stands in YAML, the place of a mistake)
    "benchmark": ("{stream: import, function: MODULE:pairs, count: 2}", "benchmark"),
    "model": ("{name: import, function: MODULE:body, units: 5}", "model"),
    "strategy": ("{name: import, function: MODULE:Slower, factor: 0.25}", "strategies[0]"),
    "deficit": ("{name: import, function: MODULE:darker, share: 0.5, end: 1}", "deficit"),
    "probes": ("[{name: import, function: MODULE:norm, order: 1}]", "probes[0]"),
}
_numbers = itertools.count()


@pytest.fixture
def write(tmp_path):
    """Write a config with some parts, and the module beside it; return the path and the module's name."""
    name = f"mas_own_parts_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(MODULE)

    def write(**parts):
        text = TEXT.format(**PLAIN | parts).replace("MODULE", name)
        (tmp_path / "c.yaml").write_text(text)
        return tmp_path / "c.yaml", name

    yield write
    sys.modules.pop(name, None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def outcome(path):
    return train_cell(Plan(load_config(path)).every_cell()[0]).outcome


def refusal(path):
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert len(caught.value.lines) == 1
    assert "\n" not in caught.value.lines[0]
    return caught.value.lines[0]


# What is imported does what it says.


def test_a_model_of_ones_own_is_the_models_it_builds(write):
    own = outcome(write(model="{name: import, function: MODULE:body, units: 8}")[0])
    assert own.matrix() == pytest.approx(outcome(write()[0]).matrix(), abs=0)


def test_a_strategy_of_ones_own_gets_its_options(write):
    plain = outcome(write()[0])
    same = outcome(write(strategy="{name: import, function: MODULE:Slower, factor: 1.0, label: own}")[0])
    slower = outcome(write(strategy="{name: import, function: MODULE:Slower, factor: 0.1}")[0])
    assert np.array_equal(same.matrix(), plain.matrix())
    assert not np.array_equal(slower.matrix(), plain.matrix())
    assert slower.untrained == plain.untrained


def test_a_data_set_of_ones_own_is_what_is_trained_on(write):
    """340 training and test images; each accuracy is a whole number of them."""
    data = "{dataset: {name: import, function: MODULE:halves, keep: 340}, experiences: 2, scenario: domain}"
    path, _ = write(benchmark=data)
    cell = Plan(load_config(path)).every_cell()[0]
    stream = build_benchmark(cell.settings, 0).test_stream
    sizes = np.array([len(experience.dataset) for experience in stream])
    assert sizes.sum() == 340
    right = train_cell(cell).outcome.matrix() * sizes
    assert right == pytest.approx(right.round(), abs=1e-9)


def test_a_stream_of_ones_own_is_the_stream_it_builds(write):
    own = outcome(write(benchmark=OWN["benchmark"][0])[0])
    theirs = outcome(write(benchmark="{dataset: digits, experiences: 2, scenario: domain}")[0])
    assert np.array_equal(own.matrix(), theirs.matrix())


def test_a_stream_gets_the_seed(write):
    own = outcome(write(benchmark="{stream: import, function: MODULE:needs_seed}")[0])
    theirs = outcome(write(benchmark="{dataset: digits, experiences: 2, scenario: domain}")[0])
    assert np.array_equal(own.matrix(), theirs.matrix())


def test_a_stream_that_takes_no_seed_is_refused_before_the_run(write):
    path, _ = write(benchmark="{stream: import, function: MODULE:takes_no_seed}")
    assert "unexpected keyword argument 'seed'" in refusal(path)


def test_a_deficit_of_ones_own_impairs(write):
    plain = outcome(write()[0])
    none = outcome(write(deficit="{name: import, function: MODULE:darker, share: 0.0, end: 1}")[0])
    dark = outcome(write(deficit="{name: import, function: MODULE:darker, share: 1.0, end: 1}")[0])
    assert np.array_equal(none.matrix(), plain.matrix())
    assert not np.array_equal(dark.matrix(), plain.matrix())


def test_a_probe_of_ones_own_is_kept_under_its_label(write):
    path, _ = write(probes="[{name: import, function: MODULE:norm, order: 1, label: one-norm, every: end}]")
    rows = outcome(path).probes
    assert {(row.label, row.probe, row.part) for row in rows} == {("one-norm", "import", "")}
    assert all(row.value > 1 for row in rows)


@pytest.mark.slow
def test_workers_find_the_module_too(write, tmp_path):
    parts = {part: text for part, (text, _) in OWN.items()}
    path, _ = write(**parts)
    done = experiments.run(path, {"seeds": 2}, output=tmp_path / "two", workers=2)
    alone = experiments.run(path, {"seeds": 2}, output=tmp_path / "one", workers=1)
    assert done.failed == ()
    assert done.results.equals(alone.results)


# What is wrong is one line, where it stands.


@pytest.mark.parametrize("part", OWN)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("MODULE:", "MODULE_gone:"), r"expected package.module:name that can be imported (ModuleNotFoundError: "),
        ((":", ":no_such_"), r"expected package.module:name that can be imported (AttributeError: module "),
        (("function: MODULE:", "function: MODULE.x:"), r"expected package.module:name that can be imported (Module"),
    ],
    ids=["module", "function", "submodule"],
)
def test_what_cannot_be_imported_is_said(part, change, message, write):
    text, place = OWN[part]
    old, new = ("MODULE:", "MODULE:no_such_") if change[0] == ":" else change
    path, _ = write(**{part: text.replace(old, new)})
    line = refusal(path)
    assert line.startswith(f"{path}:{LINES[part]}: {place}: function is '")
    assert message in line


@pytest.mark.parametrize("part", OWN)
def test_a_wrong_option_is_said(part, write):
    text, place = OWN[part]
    path, name = write(**{part: text.replace("}", ", widht: 3}", 1)})
    line = refusal(path)
    if part == "strategy":  # it takes any keyword, and hands it on
        assert line.startswith(f"{path}:{LINES[part]}: {place}: ")
        assert "widht" in line
    else:
        assert line.startswith(f"{path}:{LINES[part]}: {place}: {name}:")
        assert "has no option 'widht'; it has: " in line


@pytest.mark.parametrize(
    ("part", "text", "place", "option"),
    [
        ("model", "{name: import, function: MODULE:body}", "model", "units"),
        ("deficit", "{name: import, function: MODULE:darker, end: 1}", "deficit", "share"),
    ],
)
def test_a_missing_option_is_said(part, text, place, option, write):
    path, name = write(**{part: text})
    assert refusal(path).startswith(f"{path}:{LINES[part]}: {place}: {name}:")
    assert refusal(path).endswith(f" needs the option {option!r}; add it")


@pytest.mark.parametrize("part", OWN)
def test_a_missing_function_is_said(part, write):
    stream = part == "benchmark"
    inner = "{stream: import}" if stream else "{name: import, end: 1}" if part == "deficit" else "{name: import}"
    path, _ = write(**{part: f"[{inner}]" if part == "probes" else inner})
    assert refusal(path) == f"{path}:{LINES[part]}: {OWN[part][1]}.function: missing; add it: it has no default"


@pytest.mark.parametrize(
    ("part", "text", "expected"),
    [
        (
            "model",
            "{name: import, function: MODULE:THREE}",
            "model: function is 'NAME:THREE', which is a int; expected",
        ),
        ("model", "{name: import, function: MODULE}", "model: function is 'NAME'; expected package.module:name"),
        ("model", "{name: import, function: 3}", "model.function: found 3; allowed: "),
        ("model", "{name: import, function: MODULE:broken_body}", "model: RuntimeError: out of ideas"),
        ("probes", "[{name: import, function: MODULE:broken}]", r"probes[0]: KeyError: 'no\nsuch thing'"),
        ("strategy", "{name: import, function: MODULE:Slower, factor: x}", "strategies[0]: NAME:Slower: factor is 'x'"),
        ("deficit", "{name: import, function: MODULE:darker, share: x, end: 1}", "deficit: NAME:darker: share is 'x'"),
        ("benchmark", "{stream: import, function: MODULE:pairs, count: x}", "benchmark: "),
        (
            "benchmark",
            "{stream: import, function: MODULE:not_a_stream}",
            "benchmark: the stream is a list; expected a benchmark of Avalanche",
        ),
        (
            "benchmark",
            "{dataset: {name: import, function: MODULE:not_data}}",
            "benchmark: NAME:not_data returned int; expected (train, test) of mas.benchmarks.Images",
        ),
        (
            "benchmark",
            "{dataset: {name: import, function: MODULE:halves, kepe: 3}}",
            "benchmark: NAME:halves has no option 'kepe'; it has: keep",
        ),
        ("benchmark", "{dataset: {name: import}}", "benchmark"),
        ("benchmark", "{dataset: {name: import, function: MODULE:halves, keep: [1]}}", "benchmark: "),
        (
            "benchmark",
            "{dataset: {name: import, function: MODULE_no:halves}}",
            "benchmark: function is 'NAME_no:halves'",
        ),
    ],
)
def test_what_goes_wrong_inside_is_one_line(part, text, expected, write):
    path, name = write(**{part: text})
    line = refusal(path)
    assert line.startswith(f"{path}:{LINES[part]}: {expected.replace('NAME', name)}")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise OSError('no\\n disk')", "OSError: no disk"),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("def body(shape:", "SyntaxError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_raises_at_import_is_one_line(code, error, write, tmp_path):
    path, name = write(model="{name: import, function: MODULE:body, units: 5}")
    (tmp_path / f"{name}.py").write_text(code)
    line = refusal(path)
    assert line.startswith(f"{path}:3: model: function is '{name}:body'; expected package.module:name that can be impo")
    assert f"({error}" in line


# Where the module is gone.


def test_a_run_is_reported_where_its_module_is_gone(write, tmp_path):
    parts = {part: text for part, (text, _) in OWN.items()}
    path, name = write(**parts)
    done = experiments.run(path, output=tmp_path / "r", workers=1)
    assert done.failed == ()
    before = {file: file.read_bytes() for file in (tmp_path / "r").rglob("*") if file.is_file()}
    (tmp_path / f"{name}.py").unlink()
    sys.modules.pop(name)
    experiments.load(tmp_path / "r").report()
    assert {file: file.read_bytes() for file in (tmp_path / "r").rglob("*") if file.is_file()} == before
    assert refusal(path).count(f"No module named '{name}'") == 1


def test_a_module_that_another_of_its_name_hides_is_said(tmp_path):
    """In one process, such as a notebook, a second config must not silently get the first one's functions."""
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mas_own_twice.py").write_text(MODULE)
        model = "{name: import, function: mas_own_twice:body, units: 3}"
        paths.append(tmp_path / folder / "c.yaml")
        paths[-1].write_text(TEXT.format(**PLAIN | {"model": model}))
    load_config(paths[0])
    assert refusal(paths[1]) == (
        f"{paths[1]}:3: model: function is 'mas_own_twice:body', and {tmp_path}/a/mas_own_twice.py hides "
        f"{tmp_path}/b/mas_own_twice.py, of the same name; rename yours"
    )
    load_config(paths[0])
