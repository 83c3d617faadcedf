"""A sweep runs each combination as if it had been run alone, equal cells once, and joins the tables."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from pandas.testing import assert_frame_equal

from mas import experiments
from mas.experiments.config.sweep import MAX_COMBINATIONS
from mas.experiments.errors import UserError
from mas.experiments.jobs import run_cell
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.registry import KINDS
from mas.experiments.runner import run_experiment
from tests.experiments.builders import made_up

DIGITS = {"name": "digits", "train": 60, "test": 40}
TRAINED = {
    "benchmark": {"dataset": DIGITS},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 1, "batch_size": 30},
    "seeds": 2,
}
PROBE_NETWORK = {
    "benchmark": {"stream": "whole", "dataset": DIGITS},
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1, "batch_size": 20},
}
SPLIT = {"stream": "split", "dataset": {"name": "digits"}, "experiences": 2, "scenario": "domain"}

CONFIGS = {
    "forgetting": TRAINED | {"benchmark": SPLIT, "strategies": [{"name": "naive"}, {"name": "mas", "lam": 1.0}]},
    "critical_period": TRAINED | {"deficit": {"name": "blur", "factor": 2}, "removal": [1]},
    "consolidated_deficit": TRAINED
    | {
        "deficit": {"name": "blur", "factor": 2},
        "lengths": [1],
        "strategies": [{"name": "naive"}, {"name": "mas", "lam": [1.0]}],
    },
    "task_map": {
        "streams": [{"stream": "pairs", "dataset": {"name": "digits"}, "experiences": 3, "label": "a"}],
        "probe_network": PROBE_NETWORK,
        "embedding": {"labels": "exact"},
        "seeds": 2,
    },
    "distance_vs_forgetting": TRAINED
    | {
        "benchmark": SPLIT | {"class_order": "random"},
        "strategies": [{"name": "naive"}],
        "probe_network": PROBE_NETWORK,
        "embedding": {"labels": "exact"},
        "distances": ["cosine"],
    },
    "expert_selection": {
        "benchmark": {"stream": "one_vs_rest", "dataset": {"name": "digits"}},
        "experts": 2,
        "probe_network": PROBE_NETWORK,
        "training": {"epochs": 1, "batch_size": 32},
        "transfer": {"per_class": 3},
        "embedding": {"labels": "exact"},
        "seeds": 1,
    },
}
SWEEPS = {
    "forgetting": {"training.lr": [0.1, 0.01], "strategies.mas.lam": [1, 10]},
    "critical_period": {"training.lr": [0.1, 0.01], "deficit.factor": [2, 4]},
    "consolidated_deficit": {"model.hidden": [[4], [8, 8]], "strategies.mas.norm": ["l2", "squared_l2"]},
    "task_map": {"embedding.per_class": [5, 8]},
    "distance_vs_forgetting": {"training.lr": [0.1, 0.01], "embedding.per_class": [None, 8]},
    "expert_selection": {"transfer.per_class": [3, 4], "training.lr": [0.01, 0.001]},
}
TRAINED_SWEEPS = {
    "forgetting": {"strategies.mas.lam": [1, 10]},
    "critical_period": {"deficit.factor": [2, 4]},
    "consolidated_deficit": {"training.lr": [0.1, 0.01]},
    "task_map": {"embedding.per_class": [5, 8]},
    "distance_vs_forgetting": {"training.lr": [0.1, 0.01]},
    "expert_selection": {"transfer.per_class": [3, 4]},
}
LABELS = {  # without what an option does not change
    "forgetting": [
        *("naive,lr=0.1", "mas,lr=0.1,lam=1", "mas,lr=0.1,lam=10"),
        *("naive,lr=0.01", "mas,lr=0.01,lam=1", "mas,lr=0.01,lam=10"),
    ],
    "critical_period": [
        *("clear_1,lr=0.1", "blur_0-1_of_2,lr=0.1,factor=2", "blur_0-1_of_2,lr=0.1,factor=4"),
        *("clear_1,lr=0.01", "blur_0-1_of_2,lr=0.01,factor=2", "blur_0-1_of_2,lr=0.01,factor=4"),
    ],
    "consolidated_deficit": [
        *("clear,hidden=4", "naive_1,hidden=4", "mas-1_1,hidden=4,norm=l2", "mas-1_1,hidden=4,norm=squared_l2"),
        *("clear,hidden=8+8", "naive_1,hidden=8+8"),
        *("mas-1_1,hidden=8+8,norm=l2", "mas-1_1,hidden=8+8,norm=squared_l2"),
    ],
    "task_map": ["a,per_class=5", "a,per_class=8"],
    "distance_vs_forgetting": [
        *("naive,lr=0.1", "from_scratch,lr=0.1", "task2vec,per_class=null", "task2vec,per_class=8"),
        *("naive,lr=0.01", "from_scratch,lr=0.01"),
    ],
    "expert_selection": [
        *("task2vec,per_class=3", "probe_network,per_class=3,lr=0.01"),
        *("expert-0,per_class=3,lr=0.01", "expert-1,per_class=3,lr=0.01"),
        *("probe_network,per_class=3,lr=0.001", "expert-0,per_class=3,lr=0.001", "expert-1,per_class=3,lr=0.001"),
        *("task2vec,per_class=4", "probe_network,per_class=4,lr=0.01"),
        *("expert-0,per_class=4,lr=0.01", "expert-1,per_class=4,lr=0.01"),
        *("probe_network,per_class=4,lr=0.001", "expert-0,per_class=4,lr=0.001", "expert-1,per_class=4,lr=0.001"),
    ],
}


def swept(kind="forgetting", **changes):
    return {"experiment": kind, **CONFIGS[kind], "sweep": SWEEPS[kind], **changes}


def small(**sweep):
    return swept(seeds=1, sweep=sweep)


def combination(kind, values):
    """Return the changes that make one combination, as ``--set`` takes them."""
    names = {"strategies.mas.lam": "strategies.1.lam", "strategies.mas.norm": "strategies.1.norm"}
    return {names.get(option, option): value for option, value in values.items()}


@pytest.fixture
def untrained(monkeypatch):
    """Let cells end at once, each with an accuracy of its own."""
    trained = []

    def run(cell, keep_weights, context):
        trained.append(cell.id)
        return made_up(0.1 + 0.01 * len(trained), seconds=1.0)

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", run)
    return trained


# Every kind.


def test_every_kind_has_a_case():
    assert set(CONFIGS) == set(SWEEPS) == set(LABELS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_cells_are_planned_once_and_labels_say_what_a_cell_depends_on(kind):
    config = load_config(swept(kind), try_data=False)
    plan = Plan(config)
    assert plan.labels == LABELS[kind]
    assert len(plan.every_cell()) == len(LABELS[kind]) * len(config.seed_list())
    settings = [json.dumps(run.settings.plain()) for run in plan.runs]
    assert len(set(settings)) == len(settings)
    alone = [
        json.dumps(run.settings.plain())
        for values, _ in config.combinations
        for run in Plan(
            load_config({"experiment": kind, **CONFIGS[kind]}, changes_of(kind, values), try_data=False)
        ).runs
    ]
    assert set(settings) == set(alone)  # nothing but the cells of each combination alone


def changes_of(kind, values):
    return [f"{key}={json.dumps(value)}" for key, value in combination(kind, values).items()]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_those_of_each_combination_alone_with_a_column_for_each_option(kind, tmp_path, monkeypatch):
    """To the bit: every number of a sweep is that of a run with the same values set."""
    monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
    joined = experiments.run(swept(kind, sweep=TRAINED_SWEEPS[kind]), output=tmp_path / "sweep", workers=1)
    assert joined.failed == ()
    last, _ = joined.config.combinations[-1]
    alone = experiments.run(
        {"experiment": kind, **CONFIGS[kind]}, combination(kind, last), output=tmp_path / "alone", workers=1
    )
    assert set(joined.tables) == set(alone.tables)
    for name, table in joined.tables.items():
        assert list(table.columns)[: len(last)] == list(last)
        own = table[(table[list(last)] == list(last.values())).all(axis=1)]
        assert len(table) == 0 or len(own) < len(table)
        found = own.drop(columns=list(last)).reset_index(drop=True)
        assert_frame_equal(without_seconds(found), without_seconds(alone.tables[name]), check_dtype=False, rtol=0)
    assert (tmp_path / "sweep" / "report.html").stat().st_size > 10_000
    assert list(joined.headline().table.headings)[: len(last)] == [option.rsplit(".", 1)[1] for option in last]
    check_score_figures(joined)


def without_seconds(table):
    kept = table.drop(columns=[column for column in table.columns if "second" in column])
    return kept[kept["score"] != "seconds"].reset_index(drop=True) if "score" in kept else kept


def check_score_figures(run):
    """A score is drawn over each numeric option."""
    for option, values in run.config.sweep.items():
        (axes,) = run.figure(f"score_over_{option}").axes
        assert axes.get_xlabel() == option
        assert axes.lines
        for line in axes.lines:
            assert list(line.get_xdata()) == sorted(values)
            assert np.isfinite(line.get_ydata()).all()


# Combinations.


def test_a_folder_goes_on_and_may_be_extended(untrained, tmp_path):
    first = load_config(small(**{"training.lr": [0.1, 0.01]}), try_data=False)
    run_experiment(first, tmp_path / "run", workers=1)
    assert untrained == [f"{name},lr={lr}-seed0" for lr in (0.1, 0.01) for name in ("naive", "mas")]
    del untrained[:]
    run_experiment(first, tmp_path / "run", workers=1)
    assert untrained == []
    more = load_config(small(**{"training.lr": [0.1, 0.01, 0.001]}), try_data=False)
    with pytest.raises(UserError, match="add cells to it with --extend"):
        run_experiment(more, tmp_path / "run", workers=1)
    run_experiment(more, tmp_path / "run", workers=1, extend=True)
    assert untrained == ["naive,lr=0.001-seed0", "mas,lr=0.001-seed0"]
    assert set(experiments.load(tmp_path / "run").summary["training.lr"]) == {0.1, 0.01, 0.001}


def test_the_folder_of_a_sweep_is_loaded_as_it_was_run(untrained, tmp_path):
    run = experiments.run(swept(), output=tmp_path / "run", workers=1)
    loaded = experiments.load(tmp_path / "run")
    assert loaded.config.plain() == run.config.plain()
    assert loaded.config.plain()["sweep"] == SWEEPS["forgetting"]
    for name, table in run.tables.items():
        assert_frame_equal(loaded.tables[name], table)
        written = pd.read_csv(tmp_path / "run" / f"{name}.csv")
        assert list(written.columns) == list(table.columns)


def test_a_config_without_a_sweep_does_not_speak_of_one():
    assert "sweep" not in load_config({"experiment": "forgetting", **CONFIGS["forgetting"]}, try_data=False).plain()


def test_comparisons_are_made_within_a_combination(untrained, tmp_path):
    run = experiments.run(swept(seeds=3), output=tmp_path / "run", workers=1)
    own = run.comparisons[run.comparisons.score == "ACC"]
    naive = own[own.against == "naive"]
    assert len(naive) == 4  # mas − naive once for each combination
    acc = run.summary[run.summary.score == "ACC"].set_index(["training.lr", "strategies.mas.lam", "strategy"])["mean"]
    for row in naive.itertuples(index=False):
        lr, lam = row[0], row[1]
        assert row.difference == pytest.approx(acc[lr, lam, "mas"] - acc[lr, lam, "naive"])
    assert acc[0.1, 1, "naive"] == acc[0.1, 10, "naive"] != acc[0.01, 1, "naive"]


def test_values_are_chosen_for_each_combination(monkeypatch, tmp_path):
    """The best strength is 1 with the first learning rate and 10 with the second."""
    best = {0.1: 1.0, 0.01: 10.0}

    def run(cell, keep_weights, context):
        strategy, lr = cell.settings.strategy, cell.settings.training.lr
        is_best = strategy.name == "mas" and strategy.lam == best[lr]
        return made_up(0.9 if is_best else 0.2)

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", run)
    strategies = [{"name": "naive"}, {"name": "mas", "lam": {"select": [1, 10]}}]
    config = swept(seeds=1, strategies=strategies, sweep={"training.lr": [0.1, 0.01]})
    done = experiments.run(config, output=tmp_path / "run", workers=1)
    chosen = done.selection[done.selection.chosen]
    assert set(zip(chosen["training.lr"], chosen["strategy"], chosen["value"], strict=True)) == {
        (0.1, "mas", "lam=1.0"),
        (0.01, "mas", "lam=10.0"),
    }
    assert len(done.selection) == 2 * 2 * 2  # learning rates, strengths, seeds of selection
    acc = done.summary[(done.summary.score == "ACC") & (done.summary.strategy == "mas")]
    assert list(acc["mean"]) == [0.9, 0.9]


def test_options_of_one_name_are_told_apart():
    strategies = [{"name": "mas"}, {"name": "ewc", "label": "strong"}]
    sweep = {"strategies.mas.lam": [1, 2], "strategies.strong.lam": [3, 4]}
    plan = Plan(load_config(swept(seeds=1, strategies=strategies, sweep=sweep), try_data=False))
    assert plan.labels == ["mas,mas.lam=1", "strong,strong.lam=3", "strong,strong.lam=4", "mas,mas.lam=2"]
    dotted = [{"name": "mas"}, {"name": "ewc", "label": "ewc-1.5"}]
    config = load_config(swept(strategies=dotted, sweep={"strategies.ewc-1.5.lam": [3, 4]}), try_data=False)
    assert Plan(config).labels == ["mas", "ewc-1.5,lam=3", "ewc-1.5,lam=4"]


def test_a_column_that_a_table_has_already_gets_another_name(untrained, tmp_path):
    """``deficit`` is a column of nothing here, but ``strategy`` would be: options of the outermost map have no dot."""
    config = swept("critical_period", seeds=1, sweep={"deficit": [{"name": "blur", "factor": 2}, {"name": "flip"}]})
    run = experiments.run(config, output=tmp_path / "run", workers=1)
    assert list(run.curves.columns)[:3] == ["sweep.deficit", "curve", "deficit"]
    assert set(run.curves["sweep.deficit"]) == {'{"name": "blur", "factor": 2}', '{"name": "flip"}'}


def test_values_that_look_alike_are_told_apart():
    config = load_config(small(**{"training.epochs": [2, [2, 2], [22, 2]]}), try_data=False)
    assert [label for label in Plan(config).labels if label.startswith("mas")] == [
        *("mas,epochs=2", "mas,epochs=2+2", "mas,epochs=22+2")
    ]
    alike = load_config(small(**{"training.epochs": [2, [2]]} | {"benchmark.experiences": [1, 2]}), try_data=False)
    assert {label.split(",")[1] for label in Plan(alike).labels} == {"epochs=2", "epochs=[2]"}


def test_many_combinations_have_tables_but_no_sections(untrained, tmp_path):
    run = experiments.run(small(**{"training.lr": [0.01 * n for n in range(1, 14)]}), output=tmp_path / "r", workers=1)
    assert set(run.figures) == {"score_over_training.lr"}
    assert len(run.summary["training.lr"].unique()) == 13
    html = (tmp_path / "r" / "report.html").read_text()
    assert html.count("data:image/png") == 1
    assert "a combination has no section of its own" in html


# Mistakes.

TEXT = """\
experiment: forgetting
benchmark: {experiences: 2, scenario: domain}
model: {name: mlp, hidden: [4]}
training: {epochs: 1, batch_size: 128}
strategies: [{name: naive}, {name: mas, lam: 0.1}]
sweep:
  OPTION
seeds: 2
"""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "training.batchsize: [1, 2]",
            "sweep.training.batchsize[0]: unknown key, did you mean 'batch_size'?; allowed: epochs, batch_size, "
            "optimizer, lr, schedule, loss, momentum, weight_decay, reset_optimizer, device",
        ),
        ("training.lr: []", "sweep.training.lr: found []; allowed: a list of at least two values"),
        ("training.lr: [0.1]", "sweep.training.lr: found [0.1]; allowed: a list of at least two values"),
        ("training.lr: 0.1", "sweep.training.lr: found 0.1; allowed: a list of values"),
        ("training.lr: [0.1, 0.2, 0.1]", "sweep.training.lr: found [0.1, 0.2, 0.1]; allowed: each value once"),
        ("training.lr: [0.1, -1]", "sweep.training.lr[1]: found -1; allowed: greater than 0"),
        ("training.lr: [0.1, {select: [1, -2]}]", "sweep.training.lr: found select among the values; give"),
        (
            "strategies.mass.lam: [1, 2]",
            "sweep.strategies.mass.lam: there is no mass, did you mean 'mas'?; allowed: naive, mas",
        ),
        ("strategies.2.lam: [1, 2]", "sweep.strategies.2.lam: there is no 2; allowed: naive, mas"),
        ("model.name.x: [1, 2]", "sweep.model.name.x: there is no x in 'mlp', which holds no keys"),
        ("training.momentum: [0, 0.5]", "sweep.training.momentum[1]: found momentum with adam; allowed: only with"),
        ("seeds: [1, 2]", "sweep.seeds: cannot be swept; give one value"),
        ("training.device: [cpu, cuda]", "sweep.training.device: cannot be swept; give one value"),
        ("selection.validation: [0.1, 0.2]", "sweep.selection.validation: cannot be swept; give one value"),
        (
            "probes: [[{name: accuracy, every: end}], [{name: accuracy, every: end, max_samples: null}]]",
            "sweep.probes: no run depends on this option; leave it out",
        ),
        (
            f"training.lr: [{', '.join(str(n) for n in range(1, MAX_COMBINATIONS + 2))}]",
            "sweep: found 1,001 combinations of values; allowed: at most 1,000",
        ),
        ("training: [{lr: 1}, {lr: 2}]\n  training.lr: [1, 2]", "sweep.training.lr: found beside training; allowed"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(option, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(TEXT.replace("OPTION", option))
    with pytest.raises(UserError) as raised:
        load_config(path, try_data=False)
    assert len(raised.value.lines) == 1
    where, _, what = raised.value.lines[0].partition(": ")
    assert what.startswith(message)
    assert where in {f"{path}:{line}" for line in (6, 7, 8)}


def test_too_many_cells_are_refused(tmp_path):
    sweep = {"training.lr": [0.001 * n for n in range(1, 501)], "strategies.mas.lam": [1, 2]}
    with pytest.raises(UserError, match=r"seeds: found 1,500 runs with 100 seeds, 150,000 cells; allowed: at most"):
        load_config(swept(seeds=100, sweep=sweep), try_data=False)
    strategies = [{"name": "naive", "label": f"n{i}"} for i in range(5)]
    with pytest.raises(UserError, match=r"sweep: found 2,500 runs; allowed: at most 2,000 in one config"):
        load_config(swept(strategies=strategies, sweep={"training.lr": sweep["training.lr"]}), try_data=False)


def test_an_option_is_swept_or_chosen_but_not_both():
    strategies = [{"name": "naive"}, {"name": "mas", "lam": {"select": [1, 10]}}]
    with pytest.raises(UserError, match=r"sweep.strategies.mas.lam: is also chosen by select: strategies\[1\].lam"):
        load_config(swept(strategies=strategies), try_data=False)


def test_every_value_is_tried_on_the_data(tmp_path):
    with pytest.raises(UserError, match=r"sweep.benchmark.dataset\[1\]: .*nothere"):
        load_config(small(**{"benchmark.dataset": ["digits", "nothere"]}))


def test_a_change_on_the_command_line_replaces_a_list(tmp_path):
    (tmp_path / "c.yaml").write_text(TEXT.replace("OPTION", "training.lr: [0.1, 0.2]"))
    changed = load_config(tmp_path / "c.yaml", ["sweep.training.lr=[1, 2, 3]"], try_data=False)
    assert changed.sweep == {"training.lr": [1, 2, 3]}
    added = load_config(tmp_path / "c.yaml", ["sweep.strategies.mas.lam=[1, 2]"], try_data=False)
    assert added.sweep == {"training.lr": [0.1, 0.2], "strategies.mas.lam": [1, 2]}


# The example.


def test_the_example_trains_naive_once_for_each_learning_rate():
    path = Path(__file__).parents[2] / "configs" / "sweep_digits.yaml"
    plan = Plan(load_config(path, try_data=False))
    assert len([label for label in plan.labels if label.startswith("naive")]) == 3
    assert len([label for label in plan.labels if label.startswith("mas")]) == 9
    assert len(plan.every_cell()) == 12 * yaml.safe_load(path.read_text())["seeds"]


def test_cells_of_a_sweep_are_the_same_to_the_bit_as_without(tmp_path):
    config = load_config(small(**{"training.lr": [0.1, 0.01]}), try_data=False)
    alone = load_config({"experiment": "forgetting", **CONFIGS["forgetting"]}, ["training.lr=0.01"], try_data=False)
    (in_sweep,) = [cell for cell in Plan(config).every_cell() if cell.label == "mas,lr=0.01"]
    (without,) = [cell for cell in Plan(alone).every_cell() if cell.label == "mas" and cell.seed == 0]
    found, expected = run_cell(in_sweep, True), run_cell(without, True)
    assert found.outcome.accuracy == expected.outcome.accuracy
    assert all((found.weights[name] == weight).all() for name, weight in expected.weights.items())
