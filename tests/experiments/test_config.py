"""A right config becomes a typed one; a wrong one gets a line for each mistake."""

import inspect
import warnings
from pathlib import Path

import pytest
import yaml

import mas.strategies
from mas.benchmarks import data_root
from mas.experiments.config.schema import STRATEGY_MODELS
from mas.experiments.config.search import Search
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import RenamedWarning, UserError
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.seeds import stream_seed
from mas.strategies import STRATEGIES

GOOD = """\
experiment: forgetting
benchmark: {stream: split, dataset: digits, experiences: 5, scenario: domain}
model: {name: mlp, hidden: [8]}
training: {epochs: 1, batch_size: 32, optimizer: adam, lr: 0.001}
strategies:
  - {name: naive}
  - {name: mas, lam: 1.0}
  - {name: ewc, label: ewc-strong, lam: 10000.0}
seeds: 2
"""


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return to_file


def complaints(path, *changes):
    with pytest.raises(UserError) as error:
        load_config(path, changes)
    return [line.replace(f"{path}", "c.yaml") for line in error.value.lines]


def test_cells_are_strategies_times_seeds(write):
    cells = Plan(load_config(write(GOOD))).every_cell()
    assert [cell.id for cell in cells] == [
        *("naive-seed0", "mas-seed0", "ewc-strong-seed0"),
        *("naive-seed1", "mas-seed1", "ewc-strong-seed1"),
    ]
    assert cells[2].settings.strategy.model_dump(exclude={"label"}) == {
        **{"name": "ewc", "lam": 10000.0, "labels": "exact", "mode": "separate"},
        **{"decay": 1.0, "reduction": "sample", "parameters": "all", "data": "train", "max_samples": None},
    }


def test_seeds_are_a_number_or_a_list(write):
    assert load_config(write(GOOD)).seed_list() == [0, 1]
    assert load_config(write(GOOD), ["seeds=[7, 3]"]).seed_list() == [7, 3]


def test_resolved_config_reads_back_the_same(write, tmp_path):
    config = load_config(write(GOOD))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config.plain()))
    assert load_config(again).plain() == config.plain()


def test_defaults_are_written_out(write):
    data = load_config(
        write("experiment: forgetting\nbenchmark: {stream: split}\nstrategies: [{name: naive}]\n")
    ).plain()
    assert data["training"]["reset_optimizer"] is True
    assert data["model"] == {
        **{"head": "shared", "name": "mlp", "hidden": [256, 256]},
        **{"activation": "relu", "norm": "none"},
    }
    assert data["seeds"] == 5


@pytest.mark.parametrize(
    "name", [name for name in STRATEGIES if "lam" in inspect.signature(STRATEGIES[name]).parameters]
)
def test_a_strategys_yaml_keys_are_its_plugins_arguments(name):
    plugin = getattr(mas.strategies, f"{STRATEGIES[name].__name__}Plugin")
    arguments = inspect.signature(plugin).parameters
    assert set(STRATEGY_MODELS[name].model_fields) == {"name", "label", *arguments}
    assert "lam" in arguments


def test_every_strategy_has_a_name_in_yaml():
    assert set(STRATEGY_MODELS) == {*STRATEGIES, "import"}


def test_set_changes_values_anywhere(write):
    config = load_config(write(GOOD), ["training.epochs=3", "strategies.1.lam=5", "benchmark.scenario=task"])
    assert (config.training.epochs, config.strategies[1].lam, config.benchmark.scenario) == (3, 5.0, "task")
    short = "experiment: forgetting\nbenchmark: {}\nstrategies: [{name: naive}]\n"
    assert load_config(write(short), ["training.lr=0.5"]).training.lr == 0.5


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "epochs: 1",
            "epoch: 1",
            "c.yaml:4: training.epoch: unknown key, did you mean 'epochs'?; allowed: epochs, batch_size",
        ),
        ("seeds: 2", "seed: 2", "c.yaml:9: seed: unknown key, did you mean 'seeds'?; allowed: experiment, seeds"),
        (
            "lam: 1.0",
            "lamda: 1.0",
            "c.yaml:7: strategies[1].lamda: unknown key, did you mean 'lam'?; allowed: name, label, lam",
        ),
        ("{name: naive}", "{name: naive, lam: 1}", "c.yaml:6: strategies[0].lam: unknown key; allowed: name, label"),
        (
            "name: mas",
            "name: mass",
            f"c.yaml:7: strategies[1].name: found 'mass', did you mean 'mas'?; allowed: {', '.join(STRATEGIES)}",
        ),
        ("{name: naive}", "{lam: 1}", f"c.yaml:6: strategies[0].name: missing; allowed: {', '.join(STRATEGIES)}"),
        ("{name: naive}", "naive", "c.yaml:6: strategies[0]: found 'naive'; allowed:"),
        ("name: mlp", "name: mpl", "c.yaml:3: model.name: found 'mpl', did you mean 'mlp'?; allowed: mlp"),
        (
            "stream: split",
            "stream: spilt",
            "c.yaml:2: benchmark.stream: found 'spilt', did you mean 'split'?; allowed: split",
        ),
        (
            "dataset: digits",
            "dataset: digit",
            "c.yaml:2: benchmark.dataset: found 'digit', did you mean 'digits'?; allowed: digits",
        ),
        (
            "scenario: domain",
            "scenario: domian",
            "c.yaml:2: benchmark.scenario: found 'domian', did you mean 'domain'?; allowed: task, domain, class",
        ),
        (
            "lam: 1.0",
            "lam: {select: [1, -1]}",
            "c.yaml:7: strategies[1].lam.select[1]: found -1; allowed: greater than or equal to 0",
        ),
        ("lam: 1.0", "lam: {select: [1, 1]}", "c.yaml:7: strategies[1].lam.select: found [1, 1]; allowed: values to"),
        ("lam: 1.0", "lam: {select: [1]}", "c.yaml:7: strategies[1].lam.select: found [1]; allowed:"),
        (
            "lam: 1.0",
            "lam: {select: continualy}",
            "c.yaml:7: strategies[1].lam.select: found 'continualy', did you mean 'continual'?; allowed: a list of",
        ),
        ("lam: 1.0", "lam: {}", "c.yaml:7: strategies[1].lam.select: missing; add it: a list of values"),
        (
            "benchmark: {stream: split, dataset: digits, experiences: 5, scenario: domain}\n",
            "",
            "c.yaml:1: benchmark: missing; add it: a map such as {dataset: digits}",
        ),
        (
            GOOD[GOOD.index("strategies") :],
            "",
            "c.yaml:1: strategies: missing; add it: a list such as [{name: naive}, ",
        ),
        ("name: mlp, hidden: [8]", "name: torchvision", "c.yaml:3: model.model: missing; add it: it has no default"),
        (
            "{name: mlp, hidden: [8]}",
            "{name: resnet50}",
            "c.yaml:3: model.name: found 'resnet50', did you mean {name: torchvision, model: resnet50}?; allowed: mlp",
        ),
        (
            "{name: mlp, hidden: [8]}",
            "{name: ResNet50}",
            "c.yaml:3: model.name: found 'ResNet50', did you mean {name: torchvision, model: resnet50}?; allowed: mlp",
        ),
        (
            "{name: mlp, hidden: [8]}",
            "{name: resnet23}",
            "c.yaml:3: model.name: found 'resnet23', did you mean 'resnet32'?; allowed: mlp",
        ),
        (
            "epochs: 1",
            "epochs: 1, device: gpu",
            "c.yaml:4: training.device: found 'gpu', did you mean 'cuda'?; allowed: cpu, cuda",
        ),
        (
            "epochs: 1",
            "epochs: 1, device: cpuu",
            "c.yaml:4: training.device: found 'cpuu', did you mean 'cpu'?; allowed: cpu, cuda",
        ),
        (
            "lam: 1.0",
            "lam: {select: continual, decay: 1}",
            "c.yaml:7: strategies[1].lam.decay: found 1; allowed: less than 1",
        ),
        (
            "lam: 1.0",
            "norm: {select: continual}",
            "c.yaml:7: strategies[1].norm.select: found 'continual'; allowed: a list of values",
        ),
        (
            "lam: 10000.0",
            "labels: empirical, data: test, lam: {select: [1, 2]}",
            "c.yaml:8: strategies[2]: labels='empirical' would look at test labels",
        ),
        (
            "lam: 1.0",
            "lam: {select: auto}",
            "c.yaml:7: strategies[1].lam.select: found 'auto'; allowed: a list of values; for lam",
        ),
        (
            "lam: 1.0",
            "lam: {select: [1, 2], start: 3}",
            "c.yaml:7: strategies[1].lam.start: unknown key; allowed: select",
        ),
        (
            "lam: 1.0",
            "lam: {select: [1, 2]}, norm: {select: [l2, squared_l2]}, factor: {select: continual}",
            "c.yaml:7: strategies[1].factor.select: found 'continual'; allowed: a list of values",
        ),
        (
            "dataset: digits",
            "dataset: {name: [digits]}",
            "c.yaml:2: benchmark.dataset.name: found ['digits'], did you mean 'digits'?; allowed:",
        ),
        (
            "dataset: digits",
            "dataset: {name: image_folder, path: [1]}",
            "c.yaml:2: benchmark: dataset image_folder: path is [1]; give text or a number",
        ),
        (
            "benchmark: {stream: split, dataset: digits, experiences: 5, scenario: domain}",
            "benchmark: {stream: instances, dataset: digits, experiences: 1000}",
            "c.yaml:2: benchmark: experiences is 1000; a class has",
        ),
        (
            "benchmark: {stream: split, dataset: digits, experiences: 5, scenario: domain}",
            "benchmark: {stream: sequence, datasets: []}",
            "c.yaml:2: benchmark.datasets: found []; allowed: a longer list",
        ),
        ("lam: 1.0", "data: tset", "c.yaml:7: strategies[1].data: found 'tset', did you mean 'test'?; allowed: train"),
        (
            "seeds: 2",
            "seeds: 2\nselection: {seed: [5]}",
            "c.yaml:10: selection.seed: unknown key, did you mean 'seeds'?; allowed: seeds, validation",
        ),
        ("seeds: 2", "seeds: 2\nselection: {validation: 1}", "c.yaml:10: selection.validation: found 1; allowed: less"),
        ("lam: 1.0", "lam: -1.0", "c.yaml:7: strategies[1].lam: found -1.0; allowed: greater than or equal to 0"),
        ("lam: 1.0", "lam: strong", "c.yaml:7: strategies[1].lam: found 'strong'; allowed: a valid number"),
        ("lam: 1.0", "lam: .nan", "c.yaml:7: strategies[1].lam: found nan; allowed: "),
        ("lam: 1.0", "lam: .inf", "c.yaml:7: strategies[1].lam: found inf; allowed: a finite number"),
        ("lam: 1.0", "lam: true", "c.yaml:7: strategies[1].lam: found True; allowed: a valid number"),
        ("epochs: 1", "epochs: '1'", "c.yaml:4: training.epochs: found '1'; allowed: a valid integer"),
        (
            "epochs: 1",
            "epochs: 1, momentum: 0.9",
            "c.yaml:4: training.momentum: found momentum with adam; allowed: only",
        ),
        ("model: {name: mlp, hidden: [8]}", "model: mlp", "c.yaml:3: model: found 'mlp'; allowed: a map"),
        ("hidden: [8]", "hidden: 8", "c.yaml:3: model.hidden: found 8; allowed: a valid list"),
        (
            "experiences: 5",
            "experiences: 5, validation: 0.001",
            "c.yaml:2: benchmark: validation is 0.001; 1437 images need",
        ),
        (
            "experiences: 5",
            "experiences: 5, class_order: sorted",
            "c.yaml:2: benchmark.class_order: found 'sorted'; allowed: fixed, random or a valid list",
        ),
        ("seeds: 2", "seeds: 99999999999", "c.yaml:9: seeds: found 99999999999; allowed: less than or equal to 10000"),
        ("seeds: 2", "seeds: [1.5]", "c.yaml:9: seeds[0]: found 1.5; allowed: a valid integer"),
        ("seeds: 2", "seeds: 2\n3: 4", "c.yaml:1: [3]: found the key 3; allowed: keys that are text"),
        ("seeds: 2", "x: &a [*a]", "c.yaml:9: holds an anchor that contains itself"),
        ("seeds: 2", "seeds: 2\n---\na: 1", "c.yaml:10: not plain YAML: expected a single document"),
        ("lr: 0.001", "lr: 0", "c.yaml:4: training.lr: found 0; allowed: greater than 0"),
        ("epochs: 1", "epochs: 1.5", "c.yaml:4: training.epochs: found 1.5; allowed: a valid integer"),
        (
            "adam",
            "adamww",
            "c.yaml:4: training.optimizer: found 'adamww', did you mean 'adamw'?; allowed: ada",
        ),
        ("hidden: [8]", "hidden: [0]", "c.yaml:3: model.hidden[0]: found 0; allowed: greater than 0"),
        (
            "experiences: 5",
            "experiences: 11",
            "c.yaml:2: benchmark: experiences is 11; digits has 10 classes, so give 1 to 10",
        ),
        ("experiences: 5", "experiences: 0", "c.yaml:2: benchmark.experiences: found 0; allowed: greater than 0"),
        ("label: ewc-strong", "label: mas", "c.yaml:8: strategies[2]: found a second 'mas'; add a label"),
        ("label: ewc-strong", "label: a/b", "c.yaml:8: strategies[2].label: found 'a/b'; allowed:"),
        ("seeds: 2", "seeds: [1, 1]", "c.yaml:9: seeds: found [1, 1]; allowed:"),
        ("seeds: 2", "seeds: 0", "c.yaml:9: seeds: found 0; allowed: greater than 0"),
        ("seeds: 2", "seeds: [-1]", "c.yaml:9: seeds[0]: found -1; allowed: greater than or equal to 0"),
        ("seeds: 2", "seeds: []", "c.yaml:9: seeds: found []; allowed:"),
        (
            "experiment: forgetting",
            "experiment: forget",
            "c.yaml:1: experiment: found 'forget', did you mean 'forgetting'?",
        ),
        ("experiment: forgetting\n", "", "c.yaml:1: experiment: missing"),
        ("seeds: 2", "seeds: 2\nseeds: 3", "c.yaml:10: seeds stands twice, first in line 9"),
        (
            "seeds: 2",
            "seeds: !!python/object:os.system 2",
            "c.yaml:9: not plain YAML: could not determine a constructor for the tag",
        ),
        ("seeds: 2", "seeds: [2", "c.yaml:10: not plain YAML"),
    ],
)
def test_every_mistake_gets_one_clear_line(write, old, new, expected):
    assert GOOD.count(old) == 1 or old in ("name: mas", "{name: naive}")
    found = complaints(write(GOOD.replace(old, new, 1)))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_strategy_that_does_not_fit_the_scenario_is_said(write):
    text = GOOD.replace("scenario: domain", "scenario: task").replace("{name: naive}", "{name: der++}")
    assert complaints(write(text)) == [
        "c.yaml:6: strategies[0]: DER++ stores outputs without task labels; use the scenario domain or class"
    ]


def test_der_stores_outputs_and_so_takes_no_growing_head(write):
    text = GOOD.replace("scenario: domain", "scenario: class").replace("{name: naive}", "{name: der++}")
    assert complaints(write(text), "model.head=growing") == [
        "c.yaml:6: strategies[0]: DER++ stores outputs, whose number cannot grow; use head: shared"
    ]


def test_one_way_to_choose_in_a_strategy(write):
    text = GOOD.replace("lam: 1.0", "lam: {select: continual}, norm: {select: [l2, squared_l2]}")
    assert complaints(write(text)) == [
        "c.yaml:7: strategies[1]: found both a list and continual to select from; allowed: one way in a strategy"
    ]


def test_held_out_data_must_be_enough(write):
    text = GOOD.replace("lam: 1.0", "lam: {select: [1, 2]}")
    (line,) = complaints(write(text), "selection.validation=0.001")
    assert line.startswith("--set selection.validation=0.001: selection.validation: validation is 0.001; 1437 images")


def test_a_misspelt_select_is_said(write):
    found = complaints(write(GOOD.replace("lam: 1.0", "lam: {selct: [1, 2]}")))
    assert (
        "c.yaml:7: strategies[1].lam.selct: unknown key, did you mean 'select'?; allowed: select, start, decay, drop"
        in found
    )


def test_seeds_that_choose_are_not_those_that_report(write):
    text = GOOD.replace("lam: 1.0", "lam: {select: [1, 2]}")
    with pytest.raises(UserError, match=r"selection.seeds: found 1, for which results are reported"):
        load_config(write(text), ["selection.seeds=[1, 7]"])
    with pytest.raises(UserError, match=r"benchmark.validation: strategies\[1\] holds out data by selection"):
        load_config(write(text), ["benchmark.validation=0.1"])
    assert load_config(write(text)).searches == (Search(("strategies", 1, "lam"), (1.0, 2.0)),)


def test_data_root_of_the_command_line_comes_first(write, monkeypatch, tmp_path):
    inside, given = tmp_path / "in_config", tmp_path / "given"
    monkeypatch.setenv("MAS_DATA", "/elsewhere")
    load_config(write(GOOD))
    assert data_root() == Path("/elsewhere")
    with pytest.raises(UserError, match="given: no such folder for data sets; make it first"):
        load_config(write(GOOD), data_root=given)
    for folder in (inside, given):
        folder.mkdir()
    load_config(write(GOOD), [f"data_root={inside}"])
    assert data_root() == inside
    load_config(write(GOOD), [f"data_root={inside}"], given)
    assert data_root() == given


OLD = """\
experiment: critical_period
benchmark: {dataset: digits}
deficit: {name: blur}
removal: [1]
selectivity:
  - {name: flip}
"""


def test_an_old_key_is_read_with_one_line_of_notice(write):
    path = write(OLD)
    with pytest.warns(RenamedWarning) as notices:
        config = load_config(path)
    assert [str(notice.message) for notice in notices] == [
        f"{path}:5: selectivity: is now called other_deficits; the old name still works"
    ]
    assert issubclass(RenamedWarning, FutureWarning)
    assert [deficit.name for deficit in config.other_deficits] == ["flip"]
    assert "selectivity" not in config.plain()
    new = write(OLD.replace("selectivity", "other_deficits"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_config(new).plain() == config.plain()


@pytest.mark.filterwarnings("ignore::mas.experiments.errors.RenamedWarning")
def test_mistakes_below_an_old_key_are_found_in_their_lines(write):
    assert complaints(write(OLD.replace("flip", "flop"))) == [
        "c.yaml:6: other_deficits[0].name: found 'flop', did you mean 'flip'?; allowed: "
        "blur, flip, label_permutation, noise, occlusion, missing_channel, import"
    ]
    (line,) = complaints(write(OLD), "selectivity.0.nam=flip")
    assert line.startswith("--set selectivity.0.nam=flip: other_deficits[0].nam: unknown key, did you mean 'name'?")


@pytest.mark.filterwarnings("ignore::mas.experiments.errors.RenamedWarning")
def test_an_old_key_can_be_set(write):
    old, new = OLD, OLD.replace("selectivity", "other_deficits")
    for text in (old, new):
        for key in ("selectivity", "other_deficits"):
            assert load_config(write(text), [f"{key}=[]"]).other_deficits == []
    found = "found an old name of other_deficits, which is given too; give other_deficits alone"
    both = ("selectivity=[]", "other_deficits=[]")
    assert complaints(write(new), *both) == [f"--set selectivity=[]: selectivity: {found}"]
    within = "selectivity.0.name=flip"
    assert complaints(write(new), within) == [f"--set {within}: selectivity[0].name: {found}"]
    assert complaints(write(old + "other_deficits: []\n")) == [f"c.yaml:5: selectivity: {found}"]


def test_an_old_key_of_one_kind_is_none_of_another(write):
    (line,) = complaints(write(GOOD + "selectivity: []\n"))
    assert line.startswith("c.yaml:10: selectivity: unknown key, did you mean 'selection'?; allowed: experiment, ")


def test_an_old_name_of_a_stream_is_read_with_one_line_of_notice(write):
    old = GOOD.replace("stream: split, dataset: digits, experiences: 5, scenario: domain", "STREAM")
    path = write(old.replace("STREAM", "stream: recovery, dataset: digits, deficit: {name: blur}"))
    with pytest.warns(RenamedWarning) as notices:
        config = load_config(path)
    assert [str(notice.message) for notice in notices] == [
        f"{path}:2: benchmark.stream: recovery is now called deficit_then_clear; the old name still works"
    ]
    assert config.benchmark.stream == "deficit_then_clear"
    with pytest.warns(RenamedWarning, match="^--set benchmark.stream=recovery: benchmark.stream: recovery is now"):
        load_config(path, ["benchmark.stream=recovery"])


@pytest.mark.parametrize("stream", ["3", "[recovery]", "{select: [recovery, split]}"])
def test_other_streams_are_no_old_names(write, stream):
    assert complaints(write(GOOD), f"benchmark.stream={stream}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("seeds={select: [[1], [2]]}", "seeds.select: nothing to choose by ACC; give one value"),
        ("data_root={select: [a, b]}", "data_root.select: nothing to choose by ACC; give one value"),
        (
            "strategies.0.name={select: [naive, l2]}",
            "strategies[0].name.select: found values that would rename runs, or give others; give one value",
        ),
        (
            "strategies={select: [[{name: naive}], [{name: naive}, {name: mas}]]}",
            "strategies.select: found values that would rename runs, or give others; give one value",
        ),
        (
            "benchmark.validation={select: [0.1, 0.2]}",
            "benchmark.validation: benchmark.validation holds out data by selection.validation; leave this out",
        ),
    ],
)
def test_what_cannot_be_chosen_is_said(write, change, expected):
    assert complaints(write(GOOD), change) == [f"--set {change}: {expected}"]


def test_any_value_of_a_run_can_be_chosen(write):
    config = load_config(write(GOOD), ["training.lr={select: [0.1, 0.01]}", "model.hidden={select: [[4], [8]]}"])
    assert set(Plan(config).searches) == {"naive", "mas", "ewc-strong"}
    assert [search.option for search in Plan(config).searches["mas"]] == ["model.hidden", "training.lr"]


OWN = """
from math import prod
from torch import nn

def body(shape, width: int = 3, depth: int = 1):
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), width), nn.ReLU())
"""


def test_a_network_of_the_users_own_takes_options(write, tmp_path):
    (tmp_path / "my_networks_of_test_config.py").write_text(OWN)
    own = GOOD.replace(
        "{name: mlp, hidden: [8]}", "{name: import, function: my_networks_of_test_config:body, width: 5}"
    )
    config = load_config(write(own))
    assert config.model.arguments() == {"width": 5}
    assert load_config(write(yaml.safe_dump(config.plain()))).plain() == config.plain()
    (line,) = complaints(write(own.replace("width", "widht")))
    assert line == ("c.yaml:3: model: my_networks_of_test_config:body has no option 'widht'; it has: width, depth")


def test_1e_3_is_a_number(write):
    assert load_config(write(GOOD.replace("0.001", "1e-3"))).training.lr == 0.001
    assert load_config(write(GOOD), ["strategies.1.lam=1e4"]).strategies[1].lam == 1e4


def test_several_mistakes_get_a_line_each(write):
    text = GOOD.replace("epochs: 1", "epochs: 0").replace("lam: 1.0", "lam: -1").replace("seeds", "sedes")
    assert [line.split(" ")[0] for line in complaints(write(text))] == ["c.yaml:4:", "c.yaml:7:", "c.yaml:9:"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "an empty file"), ("# nothing\n", "an empty file"), ("- a\n", "a list"), ("hello", "a str")],
)
def test_a_file_that_is_no_map(write, text, found):
    (line,) = complaints(write(text))
    assert line.startswith(f"c.yaml:1: found {found}; expected a map")


def test_files_that_are_not_there_or_unreadable(tmp_path, write):
    write(GOOD)
    with pytest.raises(UserError, match=r"d.yaml: no such file, did you mean 'c.yaml'"):
        load_config(tmp_path / "d.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training.epochs", "--set training.epochs: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("training.epochs=0", "--set training.epochs=0: training.epochs: found 0; allowed: greater than 0"),
        ("training.epoch=1", "--set training.epoch=1: training.epoch: unknown key, did you mean 'epochs'?"),
        ("strategies.9.lam=1", "--set strategies.9.lam=1: there is no 9 in a list of 3"),
        ("seeds.a=1", "--set seeds.a=1: there is no a in 2, which holds no keys"),
        ("seeds=[1", "--set seeds=[1: '[1' is not plain YAML"),
        ("strategies=", "--set strategies=: strategies: found None; allowed: a valid list"),
    ],
)
def test_wrong_changes_get_one_clear_line(write, change, expected):
    (line,) = complaints(write(GOOD), change)
    assert line.startswith(expected)


def test_where_falls_back_to_the_map_that_lacks_a_key(write):
    source = Source(write(GOOD))
    assert source.where(("strategies", 1, "label")).endswith("c.yaml:7: strategies[1].label")
    assert source.where(()).endswith("c.yaml:1")


def test_streams_of_one_seed_and_of_different_seeds_differ():
    names = ["initialisation", "stream", "shuffling", "noise", "importance"]
    seeds = {stream_seed(seed, name, step) for seed in range(3) for name in names for step in range(3)}
    assert len(seeds) == 45
    assert stream_seed(0, "shuffling", 1, 12) != stream_seed(0, "shuffling", 11, 2)
    assert stream_seed(0, "initialisation") == 1952974914541233639
