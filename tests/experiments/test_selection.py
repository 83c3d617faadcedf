"""Values are chosen on held-out data, with seeds of their own, by the stated rule, and every try is kept."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from mas.benchmarks import split
from mas.experiments import training
from mas.experiments.build import build_benchmark, build_strategy
from mas.experiments.cell import Cell, SelectionMade
from mas.experiments.config.schema import STRATEGY_MODELS, STREAM_MODELS
from mas.experiments.config.search import Choice, Search, candidates
from mas.experiments.continual import penalty_of, tune
from mas.experiments.errors import UserError
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.record import StrengthTry
from mas.experiments.reporting import write_report
from mas.experiments.results import Tried, best
from mas.experiments.runner import read_results, run_experiment
from mas.experiments.seeds import stream_seed
from mas.experiments.store import Store
from mas.experiments.training import train_cell
from mas.strategies import STRATEGIES, ImportancePlugin
from tests.experiments.builders import made_up, make_record

WHOLE = split("digits", 5, seed=stream_seed(0, "stream"))
WHOLE_SIZES = {len(experience.dataset) for experience in WHOLE.train_stream}
TRAIN_CELL = "mas.experiments.engines.task.run_cell"

TEXT = """\
experiment: forgetting
benchmark: {stream: split, dataset: digits, experiences: 2, scenario: domain}
model: {name: mlp, hidden: [8]}
training: {epochs: 1, batch_size: 64}
strategies:
  - {name: naive}
  - {name: mas, lam: {select: [0.1, 1, 10]}, norm: {select: [l2, squared_l2]}}
  - {name: ewc, label: ewc-c, lam: {select: continual, start: 1000, decay: 0.1}}
selection: {seeds: [7, 8], validation: 0.2}
seeds: 2
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "c.yaml").write_text(TEXT)
    return load_config(tmp_path / "c.yaml")


def choice(**values):
    searches = tuple(Search(("strategies", 0, name), (value,)) for name, value in values.items())
    return Choice(searches, tuple(values.values()))


def tried(number, *finals):
    """Return a try of a choice with these final accuracies; None diverged."""
    records = [
        make_record(seed=7 + i, accuracy=[[final or 0.5]], status="diverged" if final is None else "finished")
        for i, final in enumerate(finals)
    ]
    return Tried(choice(a=number), records)


# Candidates, and the best of them.


def test_every_combination_is_a_candidate():
    searches = [Search(("strategies", 0, "a"), (1, 2)), Search(("training", "c"), ("p", "q"))]
    found = candidates(searches)
    assert [one.values for one in found] == [(1, "p"), (1, "q"), (2, "p"), (2, "q")]
    assert [str(one) for one in found] == [
        "a=1,training.c=p",
        "a=1,training.c=q",
        "a=2,training.c=p",
        "a=2,training.c=q",
    ]
    assert [str(one) for one in candidates([])] == [""]


def test_a_continual_choice_is_no_candidate(config):
    assert [search.option for search in config.searches] == ["lam", "norm"]
    assert "ewc-c" not in Plan(config).searches


def test_the_best_has_the_highest_mean():
    tries = [tried(1, 0.5, 0.6), tried(2, 0.9, 0.2), tried(3, 1.0, None), tried(4, 0.45, 0.75), tried(5, 0.75, 0.45)]
    assert best(tries) == choice(a=4)  # the first of equals; what diverged with any seed is not taken
    assert best([tried(1, None)]) is None
    assert best([]) is None


# The plan.


def test_tries_are_on_held_out_data_with_seeds_of_their_own(config):
    plan = Plan(config)
    assert list(plan.tries) == ["mas"]
    assert [str(one.choice) for one in plan.tries["mas"]] == [
        *("lam=0.1,norm=l2", "lam=0.1,norm=squared_l2", "lam=1.0,norm=l2"),
        *("lam=1.0,norm=squared_l2", "lam=10.0,norm=l2", "lam=10.0,norm=squared_l2"),
    ]
    cells = plan.trying_cells()
    assert len(cells) == 12
    assert {cell.seed for cell in cells} == {7, 8}
    assert all(cell.settings.benchmark.validation == 0.2 for cell in cells)
    assert all(cell.settings.selection is None for cell in cells)
    assert cells[0].id == "mas~lam=0.1,norm=l2-seed7"
    assert (cells[0].settings.strategy.lam, cells[0].settings.strategy.norm) == (0.1, "l2")
    to_report = plan.every_cell()[12:]
    assert [cell.id for cell in to_report] == [
        f"{label}-seed{seed}" for seed in (0, 1) for label in ("naive", "mas", "ewc-c")
    ]
    assert all(cell.settings.benchmark.validation == 0 for cell in to_report)


def test_cells_wait_until_their_choice_is_made(config):
    plan = Plan(config)
    assert [cell.id for cell in plan.cells({})] == ["naive-seed0", "ewc-c-seed0", "naive-seed1", "ewc-c-seed1"]
    assert [cell.id for cell in plan.waiting({})] == ["mas-seed0", "mas-seed1"]
    taken = plan.tries["mas"][4].choice
    assert plan.waiting({"mas": taken}) == []
    own = next(cell for cell in plan.cells({"mas": taken}) if cell.label == "mas")
    assert (own.settings.strategy.lam, own.settings.strategy.norm) == (10.0, "l2")
    assert own.settings.selection == SelectionMade(
        validation=0.2, seeds=[7, 8], options={"lam": [0.1, 1.0, 10.0], "norm": ["l2", "squared_l2"]}
    )
    waiting = plan.waiting({})[0].settings
    assert waiting.selection == own.settings.selection
    assert waiting.describe().startswith("name=mas, lam=one of [0.1, 1.0, 10.0], norm=one of ['l2', 'squared_l2'], ")


# Any value of a config.


def with_select(tmp_path, *changes):
    (tmp_path / "c.yaml").write_text(TEXT)
    return load_config(tmp_path / "c.yaml", ["strategies=[{name: naive}, {name: mas}]", *changes])


def value_of(settings, path):
    """Return the value at a dotted path of a cell's settings, as plain data."""
    value = settings.plain()
    for part in path.split("."):
        value = value[int(part) if part.isdigit() else part]
    return value


@pytest.mark.parametrize(
    ("path", "given", "values"),
    [
        ("training.lr", "[0.1, 0.01]", [0.1, 0.01]),
        ("training.lr", "[1, 1e-3]", [1.0, 0.001]),
        (
            "training.optimizer",
            "[sgd, {name: adamw, amsgrad: true}]",
            [{"name": "sgd"}, {"name": "adamw", "amsgrad": True}],
        ),
        ("training.batch_size", "[32, 128]", [32, 128]),
        ("training.epochs", "[1, 2]", [1, 2]),
        ("training.schedule", "[{name: step}, {name: StepLR, step_size: 2}]", None),
        ("training.loss.label_smoothing", "[0, 0.5]", [0.0, 0.5]),
        ("model.hidden", "[[8], [4, 4]]", [[8], [4, 4]]),
        ("model.activation", "[relu, tanh]", ["relu", "tanh"]),
        ("model.head", "[shared, growing]", ["shared", "growing"]),
        ("model", "[{name: mlp, hidden: [4]}, {name: lenet}]", None),
        ("benchmark.experiences", "[2, 5]", [2, 5]),
        ("benchmark.class_order", "[fixed, random]", ["fixed", "random"]),
        ("deficit", "[{name: blur, end: 1}, {name: noise, end: 1}]", None),
    ],
)
def test_any_value_can_be_chosen(path, given, values, tmp_path):
    if path == "training.loss.label_smoothing":
        config = with_select(tmp_path, f"training.loss={{name: cross_entropy, label_smoothing: {{select: {given}}}}}")
    else:
        config = with_select(tmp_path, f"{path}={{select: {given}}}")
    (search,) = config.searches
    assert search.option == path
    plan = Plan(config)
    assert list(plan.tries) == ["naive", "mas"]  # each label chooses for itself
    for label, tries in plan.tries.items():
        assert len(tries) == 2
        found = [value_of(one.cells[0].settings, path) for one in tries]
        assert found[0] != found[1]
        if values:
            assert found == values
        reported = plan.cells({label: tries[1].choice})
        assert {cell.label for cell in reported} == {label}
        assert value_of(reported[0].settings, path) == found[1]
        assert list(reported[0].settings.selection.options) == [path]
    assert load_plain(config) == config.plain()


def load_plain(config):
    """Return a config as it is after it was written and read again."""
    return load_config(yaml.safe_load(yaml.safe_dump(config.plain()))).plain()


def test_a_value_of_the_config_and_a_strategys_option_make_a_product(tmp_path):
    changes = ["training.lr={select: [0.1, 0.01]}", "strategies.1.lam={select: [1, 2, 3]}"]
    plan = Plan(with_select(tmp_path, *changes))
    assert [str(one.choice) for one in plan.tries["naive"]] == ["training.lr=0.1", "training.lr=0.01"]
    assert [str(one.choice) for one in plan.tries["mas"]] == [
        f"training.lr={lr},lam={lam}" for lr in (0.1, 0.01) for lam in (1.0, 2.0, 3.0)
    ]
    for one in plan.tries["mas"]:
        own = one.cells[0].settings
        assert (own.training.lr, own.strategy.lam) == one.choice.values
    assert len(plan.trying_cells()) == (2 + 6) * 2
    assert len({cell.id for cell in plan.every_cell()}) == 16 + 4


def test_each_label_is_reported_with_its_own_choice(tmp_path, monkeypatch):
    """Naive does best with the small rate, mas with the great one."""
    config = with_select(tmp_path, "training.lr={select: [0.1, 0.01]}")

    def fake(cell, keep_weights, checkpoints):
        good = {"naive": 0.01, "mas": 0.1}[cell.settings.strategy.name] == cell.settings.training.lr
        return made_up(0.9 if good else 0.5)

    monkeypatch.setattr(TRAIN_CELL, fake)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert {label: str(made) for label, made in outcome.results.chosen.items()} == {
        "naive": "training.lr=0.01",
        "mas": "training.lr=0.1",
    }
    rates = {(r.label, r.seed): r.cell.settings.training.lr for r in outcome.results.records}
    assert rates == {("naive", 0): 0.01, ("naive", 1): 0.01, ("mas", 0): 0.1, ("mas", 1): 0.1}
    write_report(Store(tmp_path / "r"), config, outcome.results)
    table = pd.read_csv(tmp_path / "r" / "selection.csv")
    assert table[table.chosen].groupby("strategy").value.unique().map(list).to_dict() == {
        "mas": ["training.lr=0.1"],
        "naive": ["training.lr=0.01"],
    }
    assert read_results(config, Store(tmp_path / "r")) == outcome.results


def test_lists_are_tried_trained_and_reported(tmp_path):
    config = with_select(tmp_path, "model.hidden={select: [[8], [4, 4]]}", "selection.seeds=[7]", "seeds=1")
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert outcome.failed == []
    write_report(Store(tmp_path / "r"), config, outcome.results)
    assert "model.hidden=[4, 4]" in (tmp_path / "r" / "report.html").read_text()
    tried = {cell.id for cell in Plan(config).trying_cells()}
    assert tried < {path.stem for path in (tmp_path / "r" / "cells").glob("*.json")}
    again = run_experiment(config, tmp_path / "r", workers=1)
    assert again.kept == 6


def test_values_with_a_slash_keep_their_cells_in_the_folder(tmp_path, monkeypatch):
    """A path names files of another folder; its cell's file is still one of this folder's."""
    monkeypatch.setattr(TRAIN_CELL, lambda cell, keep_weights, checkpoints: made_up())
    (tmp_path / "c.yaml").write_text(TEXT)
    datasets = "[{name: image_folder, path: a/b}, {name: image_folder, path: ../c}]"
    changes = ["strategies=[{name: naive}]", f"benchmark.dataset={{select: {datasets}}}", "save_model=true"]
    config = load_config(tmp_path / "c.yaml", changes, try_data=False)
    for cell in Plan(config).trying_cells():
        Store(tmp_path / "r").save(cell, made_up().outcome)
        assert Store(tmp_path / "r").read(cell) is not None
    files = list(tmp_path.rglob("*.json"))
    assert {path.parent for path in files} == {tmp_path / "r" / "cells"}
    assert len(files) == 4


@pytest.mark.parametrize("kind", ["critical_period", "consolidated_deficit"])
def test_kinds_without_acc_cannot_choose(kind, tmp_path):
    text = f"""\
experiment: {kind}
benchmark: {{dataset: digits}}
training:
  lr: {{select: [0.1, 0.01]}}
deficit: {{name: blur}}
{"removal: [0, 1]" if kind == "critical_period" else "lengths: [1]"}
{"" if kind == "critical_period" else "strategies: [{name: naive}]"}
"""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "c.yaml")
    assert caught.value.lines == (
        f"{tmp_path}/c.yaml:4: training.lr.select: experiment: {kind} has no ACC to choose by; give one value",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "training.lr={select: [0.1]}",
            r"training\.lr\.select: found \[0\.1\]; allowed: a list of at least two values$",
        ),
        ("training.lr={select: [0.1, 0.1]}", r"found \[0\.1, 0\.1\]; allowed: values to choose from, each once$"),
        ("training.lr={select: 0.1}", r"training\.lr\.select: found 0\.1; allowed: a list of values$"),
        ("training.lr={select: continual}", r"training\.lr\.select: found 'continual'; allowed: a list of values$"),
        ("training.lr={select: [0.1, 1], start: 1}", r"training\.lr\.start: unknown key; allowed: select$"),
        ("training.lr={select: [0.1, -1]}", r"training\.lr\.select\[1\]: found -1; allowed: greater than 0$"),
        ("training.lr={select: [0.1, fast]}", r"training\.lr\.select\[1\]: found 'fast'; allowed: "),
        ("model.hidden={select: [[8], [0]]}", r"model\.hidden\.select\[1\]\[0\]: found 0; allowed: greater than 0$"),
        (
            "benchmark.scenario={select: [task, domian]}",
            r"scenario\.select\[1\]: found 'domian', did you mean 'domain'",
        ),
        ("benchmark.experiences={select: [2, 20]}", r"benchmark(\.experiences)?.*: .*20"),
        ("model={select: [{name: mlp}, {name: vit_tiny, patch: 5}]}", r"model.*: patch is 5; images of 8x8 need one"),
        ("benchmark.validation=0.1", r"benchmark\.validation: .*holds out data by selection\.validation"),
        ("seeds={select: [2, 3]}", r"seeds\.select: nothing to choose by ACC; give one value$"),
        (
            "model={name: {select: [mlp, lenet]}}",
            r"model\.name\.select: found names with different options; choose between",
        ),
        ("training.loss={name: {select: [cross_entropy, multi_margin]}}", r"loss\.name\.select: found names with diff"),
        (
            "training.momentum={select: [0, 0.9]}",
            r"training\.momentum: found momentum with adam; allowed: only with optimizer: rmsprop, sgd$",
        ),
        ("seeds=[7, 0]", r"selection\.seeds: found 7, for which results are reported; allowed: other seeds$"),
        ("strategies={select: [[{name: naive}], [{name: mas}, {name: l2}]]}", r"strategies\.select: found values that"),
    ],
)
def test_what_cannot_be_chosen_from_is_said_where_it_stands(change, message, tmp_path):
    changes = [change] if "select" in change else ["training.lr={select: [0.1, 1]}", change]
    with pytest.raises(UserError, match=message) as caught:
        with_select(tmp_path, *changes)
    assert len(caught.value.lines) == 1
    assert "\n" not in caught.value.lines[0]


def test_every_combination_of_optimizer_and_momentum_is_checked(tmp_path):
    optimizer = "training.optimizer={select: [sgd, adam]}"
    with_select(tmp_path, optimizer, "training.momentum=0.0")
    for momentum in ("0.9", "{select: [0.0, 0.9]}"):
        with pytest.raises(UserError, match="found momentum with adam"):
            with_select(tmp_path, optimizer, f"training.momentum={momentum}")


# A run that chooses.


def test_a_run_takes_what_did_best_and_keeps_every_try(config, tmp_path, monkeypatch):
    def fake(cell, keep_weights, checkpoints):
        s = cell.settings
        good = s.benchmark.validation and s.strategy.name == "mas" and (s.strategy.lam, s.strategy.norm) == (10, "l2")
        return made_up(0.9 if good else 0.5 - 0.001 * cell.seed, seconds=2.0)

    monkeypatch.setattr(TRAIN_CELL, fake)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert {label: str(made) for label, made in outcome.results.chosen.items()} == {"mas": "lam=10.0,norm=l2"}
    reported = {r.label: r.cell.settings.strategy for r in outcome.results.records}
    assert (reported["mas"].lam, reported["mas"].norm) == (10.0, "l2")
    assert len(outcome.results.records) == 6
    write_report(Store(tmp_path / "r"), config, outcome.results)
    table = pd.read_csv(tmp_path / "r" / "selection.csv")
    assert list(table) == ["strategy", "value", "seed", "experience", "status", "ACC", "seconds", "chosen"]
    assert len(table) == 12
    assert table[table.chosen].value.unique().tolist() == ["lam=10.0,norm=l2"]
    assert table.seconds.sum() == 24
    assert "lam at an end of what was tried" in (tmp_path / "r" / "report.html").read_text()
    with_more = config.model_copy(update={"selection": config.selection.model_copy(update={"seeds": [9]})})
    kept = (tmp_path / "r" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"holds other results: selection.seeds is \[7, 8\] there and \[9\] here"):
        run_experiment(with_more, tmp_path / "r", workers=1)
    assert (tmp_path / "r" / "config.yaml").read_text() == kept
    with pytest.raises(UserError, match="holds other results"):
        read_results(with_more, Store(tmp_path / "r"))
    again = run_experiment(config, tmp_path / "r", workers=1)
    assert (again.kept, again.results.chosen) == (18, outcome.results.chosen)


def test_nothing_is_reported_for_a_strategy_whose_choice_is_not_complete(config, tmp_path, monkeypatch):
    def breaks(cell, keep_weights, checkpoints):
        if cell.id == "mas~lam=1.0,norm=l2-seed8":
            raise ZeroDivisionError("oh")
        return made_up()

    monkeypatch.setattr(TRAIN_CELL, breaks)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert outcome.failed == ["mas~lam=1.0,norm=l2-seed8: ZeroDivisionError: oh"]
    assert {r.label for r in outcome.results.records} == {"naive", "ewc-c"}
    assert outcome.results.chosen == {}


def test_where_every_value_diverged_it_is_said(config, tmp_path, monkeypatch):
    def diverges(cell, keep_weights, checkpoints):
        lost = {"status": "diverged", "reason": "nan"} if cell.label.startswith("mas") else {}
        return made_up(**lost)

    monkeypatch.setattr(TRAIN_CELL, diverges)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert outcome.failed == ["mas: every value tried diverged; give others"]


def test_real_tries_never_see_the_test_data(config, monkeypatch):
    seen = []

    def noting(*args, **options):
        seen.append(options["validation"])
        return split(*args, **options)

    monkeypatch.setattr(STREAM_MODELS["split"], "entry", staticmethod(noting))
    first = Plan(config).trying_cells()[0]
    assert train_cell(first).outcome.status == "finished"
    assert seen == [0.2]


# select: continual


def continual(config, **settings):
    """Return the cell that chooses continually, and how it does."""
    cell = next(cell for cell in Plan(config).cells({}) if cell.label == "ewc-c")
    return cell, cell.settings.strategy.lam.model_copy(update=settings)


def with_strategy(cell, **changed):
    """Return a cell with other options of its strategy."""
    strategy = cell.settings.strategy.model_copy(update=changed)
    return replace(cell, settings=cell.settings.model_copy(update={"strategy": strategy}))


def test_continual_decays_from_the_start_until_the_drop_is_small_enough(config):
    cell, how = continual(config, drop=0.2)
    benchmark = split("digits", 2)
    strategy = build_strategy(cell.settings, benchmark, cell.seed)
    penalty = penalty_of(strategy)
    assert penalty.strength == 500  # EWC's λ/2
    assert tune(strategy, how, 0.5, lambda copy: pytest.fail("tuned before there is anything to protect")) == []
    strategy.train(benchmark.train_stream[0])
    before = [p.clone() for p in strategy.model.parameters()]
    given, seen = iter([1.0, 0.5, np.nan, 0.79, 0.81]), []

    def accuracy_of(copy):
        seen.append(penalty_of(copy).strength)
        with torch.no_grad():
            next(copy.model.parameters()).add_(1.0)
        return next(given)

    tries = tune(strategy, how, 0.5, accuracy_of)
    assert seen == pytest.approx([0, 500, 50, 5, 0.5])
    assert [t.strength for t in tries] == pytest.approx([0, 1000, 100, 10, 1])
    assert penalty.strength == pytest.approx(0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, strategy.model.parameters(), strict=True))
    given, seen = iter([1.0, 0.9]), []
    assert [t.strength for t in tune(strategy, how, 0.5, accuracy_of)] == [0, 1000]
    assert seen == [0, 500]  # each experience begins at the start again
    assert penalty.strength == 500


def test_continual_ends_unprotected_where_nothing_helps(config):
    cell, how = continual(config)
    benchmark = split("digits", 2)
    strategy = build_strategy(cell.settings, benchmark, cell.seed)
    strategy.train(benchmark.train_stream[0])
    given = iter([1.0] + [0.0] * 100)
    assert tune(strategy, how, 0.5, lambda copy: next(given))[-1].strength == 0


@pytest.mark.parametrize("name", [name for name in STRATEGIES if "lam" in STRATEGY_MODELS[name].model_fields])
def test_over_a_stream_each_experience_is_trained_with_the_strength_that_is_told(name, config, monkeypatch):
    how = {"select": "continual", "start": 100.0, "decay": 0.1, "drop": 0.05}
    whole = Plan(config).cells({})[0].settings
    changed = {
        "benchmark": whole.benchmark.model_copy(update={"experiences": 5}),
        "strategy": STRATEGY_MODELS[name].model_validate({"name": name, "lam": how}),
        "selection": SelectionMade(validation=0.1),
    }
    cell = Cell("x", 0, whole.model_copy(update=changed))
    real, used = training._learn, []

    def noting(strategy, experience, its):
        used.append((len(experience.dataset), penalty_of(strategy).strength))
        return real(strategy, experience, its)

    monkeypatch.setattr(training, "_learn", noting)
    tries = train_cell(cell).outcome.tries
    whole_experiences = [strength for size, strength in used if size in WHOLE_SIZES]
    unit = 0.5 if "ewc" in name else 1.0
    told = [100.0, *(own[-1].strength for own in tries[1:])]
    assert whole_experiences == pytest.approx([unit * lam for lam in told])
    assert len({*told}) > 1 or name == "rwalk"


def test_continual_is_plain_training_with_the_strength_it_found(config):
    """By hand: naive and EWC copies on held-out data, then the whole experience; bit for bit."""
    cell, _ = continual(config)
    found = train_cell(cell).outcome
    assert found.tries[0] == []
    lam = found.tries[1][-1].strength
    assert found.accuracy == train_cell(with_strategy(cell, lam=lam)).outcome.accuracy
    unprotected = with_strategy(cell, lam=0.0).settings
    whole, held_out = (build_benchmark(unprotected, cell.seed, share) for share in (0.0, 0.2))
    naive = build_strategy(unprotected, whole, cell.seed)
    naive.train(whole.train_stream[0])
    naive.train(held_out.train_stream[1], reset_optimizer_state=True)
    data = held_out.test_stream[1].dataset
    x, y = (torch.stack([torch.as_tensor(sample[i]) for sample in data]) for i in (0, 1))
    right = (naive.model.eval()(x).argmax(1) == y).double().mean().item()
    assert found.tries[1][0].accuracy == pytest.approx(right, abs=1e-12)


def test_tries_are_kept_with_the_cell(config, tmp_path):
    outcome = run_experiment(config.model_copy(update={"seeds": [0]}), tmp_path / "r", workers=1)
    assert outcome.failed == []
    kept = read_results(config, Store(tmp_path / "r")).records
    (record,) = [r for r in kept if r.label == "ewc-c"]
    tries = record.outcome.tries
    assert tries[0] == []
    assert all(isinstance(one, StrengthTry) for one in tries[1])
    write_report(Store(tmp_path / "r"), config, outcome.results)
    table = pd.read_csv(tmp_path / "r" / "selection.csv")
    continually = table[table.experience.notna()]
    assert continually.ACC.tolist() == [one.accuracy for one in tries[1]]
    assert continually.chosen.tolist() == [False] * (len(continually) - 1) + [True]
    assert set(continually.experience) == {1}
    assert "Chosen continually" in (tmp_path / "r" / "report.html").read_text()
    kept_config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert kept_config["strategies"][2]["lam"]["select"] == "continual"


def test_what_is_not_finite_is_a_blow_up_not_a_failure(config, monkeypatch):
    """In a cell it is told as diverged; in a try it is a try that failed."""

    def blows_up(*args):
        raise FloatingPointError("nan")

    monkeypatch.setattr(ImportancePlugin, "_protect", blows_up)
    assert train_cell(continual(config)[0]).outcome.status == "diverged"
