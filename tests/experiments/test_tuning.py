"""Ranges are searched with Optuna on held-out data; a search goes on as if it had not been stopped."""

import math
import sys

import pytest

from mas import experiments
from mas.experiments.config.schema import Selection
from mas.experiments.config.search import Search
from mas.experiments.dry_run import dry_run
from mas.experiments.errors import UserError
from mas.experiments.events import CellEnded, Started
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.tuning import Tuner
from tests.experiments.builders import made_up

LOW, HIGH = 0.1, 10_000.0
BEST = 100.0
RANGE = {"select": {"low": LOW, "high": HIGH, "log": True}}


def config(trials=20, *, lam=RANGE, selection=None, **changes):
    return {
        "experiment": "forgetting",
        "benchmark": {"dataset": "digits", "experiences": 2, "scenario": "domain"},
        "model": {"name": "mlp", "hidden": [4]},
        "training": {"epochs": 1, "batch_size": 128},
        "strategies": [{"name": "naive"}, {"name": "mas", "lam": lam}],
        "selection": {"seeds": [7], "trials": trials, **(selection or {})},
        "seeds": 1,
    } | changes


def toy_accuracy(lam):
    """Return an accuracy that is best at 100, and falls off with the distance on a logarithmic scale."""
    return 0.9 - 0.1 * math.log10(lam / BEST) ** 2


@pytest.fixture
def toy(monkeypatch):
    """Let cells end at once, with an accuracy that depends on λ alone; return the ids of those that were run."""
    done = []

    def run(cell, keep_weights, context):
        done.append(cell.id)
        strategy = cell.settings.strategy
        return made_up(toy_accuracy(strategy.lam) if strategy.name == "mas" else 0.3, seconds=2.0)

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", run)
    return done


def tried(run):
    return list(zip(run.selection.value, run.selection.ACC, strict=True))


def chosen_value(run):
    (value,) = set(run.selection[run.selection.chosen].value)
    return float(value.removeprefix("lam="))


# The search.


def test_it_finds_a_better_value_than_a_grid_of_as_few(toy, tmp_path):
    run = experiments.run(config(20), output=tmp_path / "search", workers=1)
    grid = experiments.run(config(lam={"select": [LOW, HIGH]}), output=tmp_path / "grid", workers=1)
    assert toy_accuracy(chosen_value(run)) > 0.88  # within a factor of three of the best
    assert run.selection.ACC.max() == pytest.approx(toy_accuracy(chosen_value(run)))
    assert run.selection.ACC.max() > grid.selection.ACC.max() > grid.selection.ACC.min()
    assert run.selection.ACC[-8:].mean() > run.selection.ACC[:8].mean() + 0.1  # it learns from what it tried


SEARCH = Search(("strategies", 1, "lam"), (LOW, HIGH), is_range=True, log=True)


def test_every_try_is_kept_on_held_out_data(toy, tmp_path):
    run = experiments.run(config(10, selection={"seeds": [7, 8]}), output=tmp_path / "run", workers=1)
    assert len(run.selection) == 10 * 2
    assert list(run.selection.seed.unique()) == [7, 8]
    tries = Plan(run.config).trying_cells()
    assert {cell.settings.benchmark.validation for cell in tries} == {0.1}
    assert len([name for name in toy if name.startswith("mas~")]) == 20
    (record,) = [record for record in run.outcomes.records if record.label == "mas"]
    assert record.cell.settings.strategy.lam == chosen_value(run)
    assert record.cell.settings.selection.options == {"lam": {"low": LOW, "high": HIGH, "log": True}}
    assert record.cell.settings.benchmark.validation == 0


def test_values_lie_in_the_range_with_four_digits(toy, tmp_path):
    run = experiments.run(config(12), output=tmp_path / "run", workers=1)
    values = [float(value.removeprefix("lam=")) for value in run.selection.value]
    assert all(LOW <= value <= HIGH for value in values)
    assert all(value == float(f"{value:.4g}") for value in values)
    assert min(values) < 10
    assert max(values) > 1000


def test_a_batch_is_suggested_whole_before_any_of_it_is_finished():
    tuner = Tuner([SEARCH], Selection(seeds=[7], trials=10, batch=4))
    first = tuner.choices(lambda choice: None)
    assert (len(first), tuner.to_come) == (4, 6)
    assert tuner.choices(lambda choice: 0.5 if choice == first[0] else None) == first
    second = tuner.choices(lambda choice: 0.5 if choice in first else None)
    assert (second[:4], len(second), tuner.to_come) == (first, 8, 2)
    every = tuner.choices(lambda choice: 0.5)
    assert (every[:8], len(every), tuner.to_come) == (second, 10, 0)


def test_what_finished_tries_came_to_changes_what_is_suggested_next():
    def suggested(score):
        return Tuner([SEARCH], Selection(seeds=[7], trials=24)).choices(score)

    rising = suggested(lambda choice: math.log10(choice.values[0]))
    falling = suggested(lambda choice: -math.log10(choice.values[0]))
    assert rising[:8] == falling[:8]  # the sampler's first ones are random
    assert sum(choice.values[0] for choice in rising[12:]) > 10 * sum(choice.values[0] for choice in falling[12:])


def test_the_first_seed_of_selection_seeds_the_sampler():
    first, again, other = (
        Tuner([SEARCH], Selection(seeds=[seed], trials=4)).choices(lambda choice: None) for seed in (7, 7, 8)
    )
    assert first == again != other


def test_whole_numbers_are_each_tried_once(monkeypatch, tmp_path):
    epochs = []

    def run(cell, keep_weights, context):
        epochs.append(cell.settings.training.epochs)
        return made_up(0.1 * cell.settings.training.epochs)

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", run)
    training = {"epochs": {"select": {"low": 1, "high": 4}}, "batch_size": 128}
    strategies = [{"name": "naive"}]
    done = experiments.run(config(12, strategies=strategies, training=training), output=tmp_path / "run", workers=1)
    assert sorted(epochs) == [1, 2, 3, 4, 4]  # the last one is the cell to report
    assert sorted(done.selection.value) == [f"training.epochs={n}" for n in (1, 2, 3, 4)]
    assert done.outcomes.records[0].cell.settings.training.epochs == 4


def test_lists_beside_a_range_are_searched_with_it(toy, tmp_path):
    strategies = [{"name": "mas", "lam": RANGE, "norm": {"select": ["l2", "squared_l2"]}}]
    run = experiments.run(config(8, strategies=strategies), output=tmp_path / "run", workers=1)
    norms = {value.split("norm=")[1] for value in run.selection.value}
    assert norms == {"l2", "squared_l2"}
    assert len(run.selection) == 8  # not a grid of all norms for each strength


def test_what_diverges_is_not_chosen_and_the_search_turns_away(monkeypatch, tmp_path):
    """Above 100 everything diverges; below, more is better."""

    def run(cell, keep_weights, context):
        strategy = cell.settings.strategy
        lam = strategy.lam if strategy.name == "mas" else 0.1
        lost = {"status": "diverged", "reason": "loss is nan"} if lam > BEST else {}
        return made_up(0.5 + 0.1 * math.log10(min(lam, BEST)), **lost)

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", run)
    done = experiments.run(config(24), output=tmp_path / "run", workers=1)
    diverged = done.selection.status == "diverged"
    assert diverged.any()
    assert 10 < chosen_value(done) <= BEST
    assert diverged[12:].mean() < diverged[:12].mean()


def test_a_range_is_searched_for_each_combination_of_a_sweep(monkeypatch, tmp_path):
    best = {0.1: 1.0, 0.01: 1000.0}

    def run(cell, keep_weights, context):
        strategy = cell.settings.strategy
        lam = strategy.lam if strategy.name == "mas" else 1.0
        return made_up(0.9 - 0.02 * math.log10(lam / best[cell.settings.training.lr]) ** 2)

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", run)
    done = experiments.run(config(20, sweep={"training.lr": [0.1, 0.01]}), output=tmp_path / "run", workers=1)
    chosen = done.selection[done.selection.chosen]
    found = {row[0]: float(row.value.removeprefix("lam=")) for row in chosen.itertuples(index=False)}
    assert len(done.selection) == 40
    assert found[0.1] < 10
    assert found[0.01] > 100


# Going on.


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("after", [1, 4, 6, 11, 13, 14])
def test_a_stopped_search_goes_on_with_the_same_suggestions(after, toy, tmp_path):
    whole = experiments.run(config(13), output=tmp_path / "whole", workers=1)
    all_cells = list(toy)
    del toy[:]
    ended = []

    def stop(event):
        ended.extend([event] if isinstance(event, CellEnded) else [])
        if len(ended) == after:
            raise Stop

    with pytest.raises(Stop):
        experiments.run(config(13), output=tmp_path / "stopped", workers=1, progress=stop)
    stopped = experiments.run(config(13), output=tmp_path / "stopped", workers=1)
    assert toy == all_cells  # the same cells in the same order, none twice
    for name in ("selection", "results", "summary"):
        there, here = (tmp_path / folder / f"{name}.csv" for folder in ("whole", "stopped"))
        assert here.read_bytes() == there.read_bytes()
    assert tried(stopped) == tried(whole)


@pytest.mark.parametrize("first", [3, 8, 10])
def test_more_trials_reuse_those_that_are_finished(first, toy, tmp_path):
    whole = experiments.run(config(16), output=tmp_path / "whole", workers=1)
    del toy[:]
    experiments.run(config(first), output=tmp_path / "run", workers=1)
    begun = list(toy)
    with pytest.raises(UserError, match=f"selection.trials is {first} there and 16 here; add cells to it with --ext"):
        experiments.run(config(16), output=tmp_path / "run", workers=1)
    more = experiments.run(config(16), output=tmp_path / "run", workers=1, extend=True)
    assert tried(more) == tried(whole)
    again = toy[len(begun) :]
    assert len([name for name in again if name.startswith("mas~")]) == 16 - first
    assert not set(again) & set(begun) - {"mas-seed0"}  # that one is run again with another value
    assert chosen_value(more) == chosen_value(whole)
    (record,) = [record for record in more.outcomes.records if record.label == "mas"]
    assert record.cell.settings.strategy.lam == chosen_value(more)


def test_a_cell_whose_value_was_superseded_counts_as_missing(toy, tmp_path):
    """After 3 trials another value was the best than after 16."""
    first = experiments.run(config(3), output=tmp_path / "run", workers=1)
    last = experiments.run(config(16), output=tmp_path / "other", workers=1)
    assert chosen_value(first) != chosen_value(last)

    def stop(event):
        if isinstance(event, CellEnded) and len(list((tmp_path / "run/cells").glob("mas~*"))) == 16:
            raise Stop

    with pytest.raises(Stop):
        experiments.run(config(16), output=tmp_path / "run", workers=1, extend=True, progress=stop)
    assert [record.label for record in experiments.load(tmp_path / "run").outcomes.records] == ["naive"]
    more = experiments.run(config(16), output=tmp_path / "run", workers=1)
    assert more.results.equals(last.results)


@pytest.mark.slow
def test_results_do_not_depend_on_workers(tmp_path):
    """Trained for real: values, accuracies and weights of choices are the same with one worker and with two."""
    runs = [experiments.run(config(6), output=tmp_path / str(n), workers=n) for n in (1, 2)]
    assert tried(runs[0]) == tried(runs[1])
    assert runs[0].results.equals(runs[1].results)
    names = [{path.name for path in (tmp_path / n / "cells").iterdir()} for n in ("1", "2")]
    assert names[0] == names[1]
    assert len(names[0]) == 8


# What is told.


def test_the_plan_knows_how_many_cells_are_to_come(toy, tmp_path):
    loaded = load_config(config(10, selection={"seeds": [7, 8]}), try_data=False)
    plan = Plan(loaded)
    assert (len(plan.trying_cells()), plan.to_come) == (8, 12)
    events = []
    experiments.run(config(10), output=tmp_path / "run", workers=1, progress=events.append)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.total == len([event for event in events if isinstance(event, CellEnded)]) == 12


def test_a_dry_run_counts_them(toy, tmp_path):
    loaded = load_config(config(10), try_data=False)
    lines = dry_run(loaded, tmp_path / "run", workers=1).lines()
    assert lines[-2:] == [
        "and 6 more, whose values are suggested once these are finished",
        "0 cells finished, 12 to train; how long that takes can be estimated once a cell is finished",
    ]
    experiments.run(config(10), output=tmp_path / "run", workers=1)
    assert dry_run(loaded, tmp_path / "run").lines()[-1] == "12 cells finished, 0 to train"
    more = load_config(config(20), try_data=False)
    assert dry_run(more, tmp_path / "run", workers=1).seconds_left() == pytest.approx(10 * 2.0, rel=0.2)


# Mistakes.


@pytest.mark.parametrize(
    ("lam", "message"),
    [
        (
            {"low": 1},
            "found {'low': 1}; allowed: a list of values, or a range such as {low: 0.1, high: 100, log: true}",
        ),
        ({"low": 1, "high": 2, "step": 1}, "allowed: a list of values, or a range such as {low: 0.1, high: 100, log"),
        ({"low": 2, "high": 2}, "strategies[1].lam.select.high: found 2; allowed: more than low, 2"),
        ({"low": 0, "high": 2, "log": True}, "strategies[1].lam.select.low: found 0; allowed: more than 0, with log"),
        ({"low": -1, "high": 2}, "strategies[1].lam.select.low: found -1; allowed: greater than or equal to 0"),
        ({"low": "a", "high": 2}, "strategies[1].lam.select.low: found 'a'; allowed: a number"),
        ({"low": 1, "high": 2, "log": 1}, "strategies[1].lam.select.log: found 1; allowed: true or false"),
        ({"low": math.nan, "high": 2}, "strategies[1].lam.select.high: found 2; allowed: more than low, nan"),
    ],
)
def test_a_mistake_is_one_line(lam, message):
    with pytest.raises(UserError) as raised:
        load_config(config(lam={"select": lam}), try_data=False)
    (line,) = raised.value.lines
    assert message in line
    assert line.startswith("strategies[1].lam.select")


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"trials": 0}, "selection.trials: found 0; allowed: greater than 0"),
        ({"trials": 1001}, "selection.trials: found 1001; allowed: less than or equal to 1000"),
        ({"sampler": "tpee"}, "selection.sampler: found 'tpee', did you mean 'tpe'?; allowed: tpe, random"),
    ],
)
def test_options_of_the_search_are_checked(selection, message):
    with pytest.raises(UserError, match="selection") as raised:
        load_config(config(selection=selection), try_data=False)
    assert raised.value.lines == (message,)


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError) as raised:
        load_config(config(), try_data=False)
    (line,) = raised.value.lines
    assert line.startswith("strategies[1].lam.select: a range is searched with Optuna, which cannot be imported")
    assert line.endswith("run: pip install optuna, or give a list of values")
    load_config(config(lam={"select": [1, 10]}), try_data=False)  # lists need none


def test_a_range_is_not_searched_in_shards(toy, tmp_path):
    with pytest.raises(UserError, match="shard: a range is searched one batch after another; run without a shard"):
        experiments.run(config(), output=tmp_path / "run", workers=1, shard="1/2")
