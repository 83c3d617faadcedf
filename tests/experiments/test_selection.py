"""Settings are chosen on held-out data, with seeds of their own, by the stated rule, and every try is kept."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mas.experiments.cells import Cell, expand, tries_of
from mas.experiments.loading import load_config
from mas.experiments.report.forgetting import tried_rows
from mas.experiments.run import run_experiment
from mas.experiments.selection import best, candidates, penalty_of, tune

from mas.benchmarks import split
from mas.experiments import cell as cell_module
from mas.experiments.cell import build_strategy, run_cell
from mas.experiments.config import STRATEGY_MODELS
from mas.experiments.errors import UserError
from mas.experiments.report import write_report
from mas.experiments.results import read_results
from mas.experiments.seeds import stream_seed
from mas.experiments.store import Store
from mas.strategies import STRATEGIES, ImportancePlugin

WHOLE = split("digits", 5, seed=stream_seed(0, "stream"))
WHOLE_SIZES = {len(experience.dataset) for experience in WHOLE.train_stream}

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


def record(accuracy, status="finished", seed=7):
    return {"status": status, "accuracy": [[accuracy]], "seconds": 1.0, "seed": seed}


def test_every_combination_is_a_candidate():
    assert candidates({"name": "x", "a": {"select": [1, 2]}, "b": 3, "c": {"select": ["p", "q"]}}) == [
        *({"a": 1, "c": "p"}, {"a": 1, "c": "q"}),
        *({"a": 2, "c": "p"}, {"a": 2, "c": "q"}),
    ]
    assert candidates({"name": "x", "lam": {"select": "continual"}}) == [{}]


def test_the_best_has_the_highest_mean():
    tries = [
        ({"a": 1}, [record(0.5), record(0.6)]),
        ({"a": 2}, [record(0.9), record(0.2)]),
        ({"a": 3}, [record(1.0), record(1.0, "diverged")]),
        ({"a": 4}, [record(0.45), record(0.75)]),
        ({"a": 5}, [record(0.75), record(0.45)]),
    ]
    assert best(tries) == {"a": 4}  # the first of equals; what diverged with any seed is not taken
    assert best([({"a": 1}, [record(0.5, "diverged")])]) is None


def test_tries_are_on_held_out_data_with_seeds_of_their_own(config):
    (own,) = tries_of(config).values()
    cells = [cell for _, cells in own for cell in cells]
    assert len(cells) == 12
    assert {cell.seed for cell in cells} == {7, 8}
    assert all(cell.settings["benchmark"]["validation"] == 0.2 for cell in cells)
    assert cells[0].id == "mas~lam=0.1,norm=l2-seed7"
    assert (cells[0].settings["strategy"]["lam"], cells[0].settings["strategy"]["norm"]) == (0.1, "l2")
    assert all(cell.settings["benchmark"]["validation"] == 0 for cell in expand(config))


def test_a_run_takes_what_did_best_and_keeps_every_try(config, tmp_path, monkeypatch):
    def fake(cell):
        s = cell.settings["strategy"]
        good = cell.settings["benchmark"]["validation"] and s.get("lam") == 10 and s["norm"] == "l2"
        row = [0.9 if good else 0.5 - 0.001 * cell.seed] * 2
        return {"status": "finished", "reason": None, "untrained": row, "accuracy": [row, row], "tries": []} | {
            "seconds": 2.0
        }

    monkeypatch.setattr("mas.experiments.run.run_cell", fake)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert outcome.results.chosen == {"mas": {"lam": 10.0, "norm": "l2"}}
    reported = {r["label"]: r["settings"]["strategy"] for r in outcome.results.records}
    assert (reported["mas"]["lam"], reported["mas"]["norm"]) == (10.0, "l2")
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
    def breaks(cell):
        if cell.id == "mas~lam=1.0,norm=l2-seed8":
            raise ZeroDivisionError("oh")
        row = [0.5, 0.5]
        return {"status": "finished", "reason": None, "untrained": row, "accuracy": [row, row], "tries": []} | {
            "seconds": 2.0
        }

    monkeypatch.setattr("mas.experiments.run.run_cell", breaks)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert outcome.failed == ["mas~lam=1.0,norm=l2-seed8: ZeroDivisionError: oh"]
    assert {r["label"] for r in outcome.results.records} == {"naive", "ewc-c"}
    assert outcome.results.chosen == {}


def test_where_every_value_diverged_it_is_said(config, tmp_path, monkeypatch):
    def diverges(cell):
        row, mas = [0.5, 0.5], cell.label.startswith("mas")
        return {"status": "diverged" if mas else "finished", "reason": "nan", "untrained": row} | {
            "accuracy": [row, row],
            "tries": [],
            "seconds": 2.0,
        }

    monkeypatch.setattr("mas.experiments.run.run_cell", diverges)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert outcome.failed == ["mas: every value tried diverged; give others"]


def test_real_tries_never_see_the_test_data(config, monkeypatch):
    seen = []

    def noting(*args, **options):
        made = split(*args, **options)
        seen.append(options["validation"])
        return made

    monkeypatch.setitem(cell_module.STREAMS, "split", noting)
    (_, (first, *_)), *_ = next(iter(tries_of(config).values()))
    assert run_cell(first)["status"] == "finished"
    assert seen == [0.2]


# select: continual


def continual(config, **settings):
    cell = next(cell for cell in expand(config) if cell.label == "ewc-c")
    return cell, cell.settings["strategy"]["lam"] | settings


def test_continual_decays_from_the_start_until_the_drop_is_small_enough(config):
    cell, settings = continual(config, drop=0.2)
    benchmark = split("digits", 2)
    strategy = build_strategy(cell, benchmark)
    penalty = penalty_of(strategy)
    assert penalty.strength == 500  # EWC's λ/2
    assert tune(strategy, settings, 0.5, lambda copy: pytest.fail("tuned before there is anything to protect")) == []
    strategy.train(benchmark.train_stream[0])
    before = [p.clone() for p in strategy.model.parameters()]
    given, seen = iter([1.0, 0.5, np.nan, 0.79, 0.81]), []

    def accuracy_of(copy):
        seen.append(penalty_of(copy).strength)
        with torch.no_grad():
            next(copy.model.parameters()).add_(1.0)
        return next(given)

    tries = tune(strategy, settings, 0.5, accuracy_of)
    assert seen == pytest.approx([0, 500, 50, 5, 0.5])
    assert [t["strength"] for t in tries] == pytest.approx([0, 1000, 100, 10, 1])
    assert penalty.strength == pytest.approx(0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, strategy.model.parameters(), strict=True))
    given, seen = iter([1.0, 0.9]), []
    assert [t["strength"] for t in tune(strategy, settings, 0.5, accuracy_of)] == [0, 1000]
    assert seen == [0, 500]  # each experience begins at the start again
    assert penalty.strength == 500


def test_continual_ends_unprotected_where_nothing_helps(config):
    cell, settings = continual(config)
    benchmark = split("digits", 2)
    strategy = build_strategy(cell, benchmark)
    strategy.train(benchmark.train_stream[0])
    given = iter([1.0] + [0.0] * 100)
    assert tune(strategy, settings, 0.5, lambda copy: next(given))[-1]["strength"] == 0


@pytest.mark.parametrize("name", [name for name in STRATEGIES if "lam" in STRATEGY_MODELS[name].model_fields])
def test_over_a_stream_each_experience_is_trained_with_the_strength_that_is_told(name, config, monkeypatch):
    settings = {"select": "continual", "start": 100.0, "decay": 0.1, "drop": 0.05}
    options = STRATEGY_MODELS[name].model_validate({"name": name, "lam": settings}).model_dump(exclude={"label"})
    whole = expand(config)[0].settings
    changed = {"benchmark": whole["benchmark"] | {"experiences": 5}, "strategy": options}
    cell = Cell("x", 0, whole | changed | {"selection": {"validation": 0.1}})
    real, used = cell_module._learn, []

    def noting(strategy, experience, its):
        used.append((len(experience.dataset), penalty_of(strategy).strength))
        return real(strategy, experience, its)

    monkeypatch.setattr(cell_module, "_learn", noting)
    found = run_cell(cell)
    whole_experiences = [strength for size, strength in used if size in WHOLE_SIZES]
    unit = 0.5 if "ewc" in name else 1.0
    told = [100.0, *(own[-1]["strength"] for own in found["tries"][1:])]
    assert whole_experiences == pytest.approx([unit * lam for lam in told])
    assert len({*told}) > 1 or name == "rwalk"


def test_continual_is_plain_training_with_the_strength_it_found(config):
    """By hand: naive and EWC copies on held-out data, then the whole experience; bit for bit."""
    cell, _ = continual(config)
    found = run_cell(cell)
    assert found["tries"][0] == []
    lam = found["tries"][1][-1]["strength"]
    by_hand = run_cell(Cell("x", cell.seed, cell.settings | {"strategy": cell.settings["strategy"] | {"lam": lam}}))
    assert found["accuracy"] == by_hand["accuracy"]
    with_zero = cell.settings | {"strategy": cell.settings["strategy"] | {"lam": 0.0}}
    halves = [
        split(
            **{k: v for k, v in (cell.settings["benchmark"] | {"validation": share}).items() if k != "stream"}, seed=s
        )
        for s in [stream_seed(cell.seed, "stream")]
        for share in (0.0, 0.2)
    ]
    naive = build_strategy(Cell("x", cell.seed, with_zero), halves[0])
    naive.train(halves[0].train_stream[0])
    naive.train(halves[1].train_stream[1], reset_optimizer_state=True)
    held_out = halves[1].test_stream[1].dataset
    x, y = (torch.stack([torch.as_tensor(sample[i]) for sample in held_out]) for i in (0, 1))
    right = (naive.model.eval()(x).argmax(1) == y).double().mean().item()
    assert found["tries"][1][0]["accuracy"] == pytest.approx(right, abs=1e-12)


def test_tries_are_kept_with_the_cell(config, tmp_path):
    outcome = run_experiment(config.model_copy(update={"seeds": [0]}), tmp_path / "r", workers=1)
    assert outcome.failed == []
    kept = read_results(config, Store(tmp_path / "r")).records
    (record,) = [r for r in kept if r["label"] == "ewc-c"]
    assert record["tries"][0] == []
    write_report(Store(tmp_path / "r"), config, outcome.results)
    table = pd.read_csv(tmp_path / "r" / "selection.csv")
    continual = table[table.experience.notna()]
    assert continual.ACC.tolist() == [t["accuracy"] for t in record["tries"][1]]
    assert continual.chosen.tolist() == [False] * (len(continual) - 1) + [True]
    assert set(continual.experience) == {1}
    assert "Chosen continually" in (tmp_path / "r" / "report.html").read_text()
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["strategies"][2]["lam"]["select"] == "continual"


def selection(rows):
    columns = ["strategy", "value", "seed", "experience", "ACC", "seconds", "chosen"]
    return pd.DataFrame(rows, columns=columns).astype({"experience": "Int64"})


def test_remarks_are_by_value():
    def remark(*tried):
        rows = [("mas", value, 7, None, acc, 1.0, chosen) for value, acc, chosen in tried]
        (row,) = [row for row in tried_rows(selection(rows)) if row["chosen"]]
        return row["remark"]

    assert remark(("lam=1", 0.9, True), ("lam=100", 0.5, False), ("lam=0.1", 0.4, False)) == ""
    assert remark(("lam=10", 0.1, False), ("lam=100", 0.9, True)).startswith("lam at an end of what was tried")
    assert remark(("norm=l2", 0.1, False), ("norm=squared_l2", 0.9, True)) == ""
    two = remark(("lam=1,factor=0.1", 0.9, True), ("lam=1,factor=0.5", 0.5, False), ("lam=2,factor=0", 0.2, False))
    assert two == "lam at an end of what was tried: better values may lie beyond"
    assert remark(("lam=1", 0.5, False), ("lam=2", 0.9, True), ("lam=3", 0.9, False)) == "2 did as well"


def test_a_value_that_diverged_with_a_seed_has_no_mean():
    rows = [("mas", "lam=1", 7, None, np.nan, 1.0, False), ("mas", "lam=1", 8, None, 0.6, 1.0, False)]
    (row,) = tried_rows(selection(rows))
    assert row["ACC"] == "–"


def test_what_is_not_finite_is_a_blow_up_not_a_failure(config, monkeypatch):
    """In a cell it is told as diverged; in a try it is a try that failed."""
    monkeypatch.setattr(ImportancePlugin, "_protect", lambda *args: (_ for _ in ()).throw(FloatingPointError("nan")))
    cell = next(cell for cell in expand(config) if cell.label == "ewc-c")
    assert run_cell(cell)["status"] == "diverged"
