"""Experiments on critical periods: which networks are trained, how, and what is said of them."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import stats

from mas.benchmarks import whole
from mas.experiments import training
from mas.experiments.cell import Cell, CellTraining
from mas.experiments.config.schema import SCHEDULED_DEFICIT_MODELS, probe_options
from mas.experiments.errors import UserError
from mas.experiments.kinds.consolidated_deficit.tables import scores_table
from mas.experiments.kinds.critical_period.plan import plan
from mas.experiments.kinds.critical_period.tables import control_comparison, curves, tables
from mas.experiments.kinds.forgetting.page import stream_section
from mas.experiments.plan import Plan
from mas.experiments.probing import make_deficit_plugin
from mas.experiments.read_config import load_config
from mas.experiments.record import CellRecord, Outcome, ProbeRow
from mas.experiments.reporting import write_report
from mas.experiments.results import Results
from mas.experiments.runner import read_folder, read_results, run_experiment
from mas.experiments.seeds import stream_seed
from mas.experiments.store import Store
from mas.experiments.traces import TOTAL, fisher_traces, probes_table, shift, trace_table
from mas.information import share_shift

CONFIGS = Path(__file__).parents[2] / "configs"
CRITICAL: dict[str, Any] = {
    "experiment": "critical_period",
    "benchmark": {"dataset": "digits", "train": 60, "test": 40, "normalize": False},
    "model": {"name": "mlp", "hidden": [8], "norm": "batch"},
    "training": {"epochs": 2, "batch_size": 30, "optimizer": "sgd", "lr": 0.1},
    "deficit": {"name": "blur", "factor": 2},
    "removal": [0, 1, 3],
    "window": {"length": 2, "onsets": [0, 1]},
    "trace": {"end": 3},
    "other_deficits": [{"name": "flip"}],
    "seeds": 2,
}
ANNEALED = {"training": CRITICAL["training"] | {"schedule": {"name": "exponential", "decay": 0.5}}}
CONSOLIDATED: dict[str, Any] = {
    **{key: CRITICAL[key] for key in ("benchmark", "model", "training", "deficit", "seeds")},
    "experiment": "consolidated_deficit",
    "lengths": [1, 2],
    "strategies": [{"name": "naive"}, {"name": "mas", "lam": [0.0, 10.0]}, {"name": "ewc", "lam": 5.0}],
}


@pytest.fixture
def load(tmp_path):
    def loaded(data, *changes, **options):
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(data))
        return load_config(path, changes, **options)

    return loaded


def cells_of(config):
    return Plan(config).cells({})


def settings_of(config):
    return {cell.label: cell.settings for cell in cells_of(config) if cell.seed == 0}


def trained(cell):
    return training.train_cell(cell).outcome


class TestRuns:
    """Which networks are trained."""

    def test_each_point_is_a_run_of_its_own_and_none_is_run_twice(self, load):
        config = load(CRITICAL)
        assert [run.label for run in plan(config)] == [
            *("clear_2", "blur_0-1_of_3", "blur_0-3_of_5", "flip_0-1_of_3", "flip_0-3_of_5"),
            *("clear_4", "blur_0-2_of_4", "clear_5", "blur_1-3_of_5"),
        ]
        assert len(Plan(config).every_cell()) == 18

    @pytest.mark.parametrize("label", ["clear", "control", "clear_2"])
    def test_no_label_is_reserved(self, load, label):
        config = load(CRITICAL | ANNEALED, f"deficit.label={label}", f"other_deficits.0.label={label}-2")
        labels = [run.label for run in plan(config)]
        assert len(set(labels)) == len(labels)
        table = curves(config, made_up(config, lambda own, seed: [[0.5 if own.startswith(f"{label}_0-3") else 0.9]]))
        removal = table[table.curve == "removal"].set_index(["deficit", "epoch"])
        assert list(removal.loc[label].accuracy) == [0.9, 0.9, 0.5]
        assert removal.loc[f"{label}-2"].accuracy.eq(0.9).all()

    def test_all_have_as_many_clear_epochs_after_the_deficit(self, load):
        for settings in settings_of(load(CRITICAL)).values():
            if settings.deficit is not None:
                assert settings.training.epochs - settings.deficit.end == 2

    def test_a_control_is_run_unless_the_rate_is_constant(self, load):
        constant, annealed = load(CRITICAL), load(CRITICAL | ANNEALED)
        assert not constant.needs_control
        assert annealed.needs_control
        assert set(settings_of(annealed)) - set(settings_of(constant)) == {"control_1_of_2", "control_3_of_2"}

    def test_the_control_sees_the_rates_that_the_impaired_network_sees_after_removal(self, load, monkeypatch):
        seen = {}
        original = training.build_strategy

        def watched(settings, benchmark, seed):
            strategy = original(settings, benchmark, seed)
            step = strategy.optimizer.step

            def noted(*args, **kwargs):
                seen.setdefault(label, []).append(strategy.optimizer.param_groups[0]["lr"])
                return step(*args, **kwargs)

            strategy.optimizer.step = noted
            return strategy

        monkeypatch.setattr(training, "build_strategy", watched)
        for label, settings in settings_of(load(CRITICAL | ANNEALED)).items():
            if label in ("control_3_of_2", "blur_0-3_of_5", "clear_2"):
                trained(Cell(label, 0, settings))
        assert seen["clear_2"] == [0.1, 0.1, 0.05, 0.05]
        assert seen["blur_0-3_of_5"][-4:] == seen["control_3_of_2"] == [0.0125, 0.0125, 0.00625, 0.00625]

    def test_a_run_without_deficit_is_ordinary_training(self, load):
        forgetting = {
            **{key: CRITICAL[key] for key in ("model", "training", "seeds")},
            **{"experiment": "forgetting", "strategies": [{"name": "naive"}]},
            "benchmark": CRITICAL["benchmark"] | {"stream": "whole"},
        }
        (plain,) = [trained(cell) for cell in cells_of(load(forgetting)) if cell.seed == 1]
        (clear,) = [trained(cell) for cell in cells_of(load(CRITICAL)) if cell.id == "clear_2-seed1"]
        assert clear.accuracy == plain.accuracy

    def test_until_the_deficit_begins_all_networks_are_the_same(self, load):
        often = {"probes": [probe_options("loss", data=["train"])]}
        settings = settings_of(load(CRITICAL))
        late, clear = (
            trained(Cell(label, 0, settings[label].model_copy(update=often))).probes
            for label in ("blur_1-3_of_5", "clear_5")
        )
        assert [row.value for row in late][:2] == [row.value for row in clear][:2]
        assert [row.value for row in late][2] != [row.value for row in clear][2]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "exponential", "decay": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"name": "step", "every": 2, "decay": 0.1}, [1, 1, 0.1, 0.1]),
        ({"name": "cosine", "epochs": 4}, [1, (1 + np.cos(np.pi / 4)) / 2, 0.5, (1 + np.cos(3 * np.pi / 4)) / 2]),
        (None, [1, 1, 1, 1]),
    ],
)
def test_schedules(schedule, expected):
    assert [CellTraining(schedule=schedule).rate_factor(epoch) for epoch in range(4)] == pytest.approx(expected)
    late = CellTraining(schedule=schedule, first_epoch=2)
    assert [late.rate_factor(epoch) for epoch in range(2)] == pytest.approx(expected[2:])


def made_up(config, accuracy, probes=lambda label, seed: [], status=lambda label, seed: "finished"):
    """Records of cells that were not trained: accuracy(label, seed) is all that matters."""
    return [
        CellRecord(
            cell,
            Outcome(
                untrained=[0.1],
                accuracy=accuracy(cell.label, cell.seed),
                probes=probes(cell.label, cell.seed),
                status=status(cell.label, cell.seed),
                seconds=1.0,
            ),
        )
        for cell in cells_of(config)
    ]


def row(data, experience, epoch, iteration, probe, part, value):
    """A row of a probe under its own name."""
    return ProbeRow(probe, probe, data, experience, epoch, iteration, part, value)


LOSSES = {"blur_0-1_of_3": 0.1, "blur_0-3_of_5": 0.3, "control_1_of_2": 0.02, "control_3_of_2": 0.24, "clear_5": 0.05}


def losing(label, seed):
    return [[0.9 - LOSSES.get(label, 0) - 0.01 * seed * (1 + LOSSES.get(label, 0))]]


class TestCurves:
    """Against sums by hand."""

    def test_points_are_held_against_their_reference_seed_by_seed(self, load):
        config = load(CRITICAL, "seeds=4")
        at_end = [ProbeRow("final_accuracy", "accuracy", "train", 0, 2, 4, "", 0.97)]
        table = curves(config, made_up(config, losing, lambda label, seed: at_end))
        row = table[(table.curve == "removal") & (table.deficit == "blur") & (table.epoch == 3)].iloc[0]
        own, reference = ([losing(label, s)[0][0] for s in range(4)] for label in ("blur_0-3_of_5", "clear_2"))
        lost = np.subtract(reference, own)
        assert row.accuracy == pytest.approx(np.mean(own))
        assert row.loss == pytest.approx(lost.mean())
        assert row.p == pytest.approx(stats.ttest_rel(reference, own).pvalue)
        assert row.train_accuracy == 0.97
        assert row.loss_ci_low < row.loss < row.loss_ci_high
        window = table[(table.curve == "window") & (table.epoch == 1)].iloc[0]
        assert (window.run, window.reference) == ("blur_1-3_of_5", "clear_5")
        assert window.loss == pytest.approx(
            np.mean([losing("clear_5", s)[0][0] - losing("", s)[0][0] for s in range(4)])
        )
        clear = table[(table.curve == "removal") & (table.epoch == 0)]
        assert clear[["loss", "p"]].isna().all().all()

    def test_p_values_are_adjusted_within_a_curve(self, load):
        config = load(CRITICAL, "seeds=4")
        table = curves(config, made_up(config, losing))
        own = table[(table.curve == "removal") & (table.deficit == "blur")].set_index("epoch")
        small, large = sorted([own.p[1], own.p[3]])
        assert sorted([own.p_holm[1], own.p_holm[3]]) == pytest.approx([2 * small, max(2 * small, large)])

    def test_how_much_the_control_explains(self, load):
        config = load(CRITICAL | ANNEALED, "seeds=4")
        table = control_comparison(config, made_up(config, losing)).set_index(["deficit", "epoch"])
        own = [[0.9 - losing(label, 0)[0][0]] for label in ("blur_0-3_of_5", "control_3_of_2")]
        seeds = range(4)
        loss, control = (
            np.mean([losing("clear_2", s)[0][0] - losing(label, s)[0][0] for s in seeds])
            for label in ("blur_0-3_of_5", "control_3_of_2")
        )
        row = table.loc[("blur", 3)]
        assert len(own) == 2
        assert row.loss == pytest.approx(loss)
        assert row.explained == pytest.approx(control / loss)
        assert np.isnan(table.loc[("flip", 3)].explained)  # it loses nothing
        assert row.left == pytest.approx(loss - control)
        left = [losing("control_3_of_2", s)[0][0] - losing("blur_0-3_of_5", s)[0][0] for s in seeds]
        assert row.p == pytest.approx(stats.ttest_1samp(left, 0).pvalue)
        assert "control" in tables(config, Results(made_up(config, losing)))
        constant = load(CRITICAL)
        assert "control" not in tables(constant, Results(made_up(constant, losing)))

    def test_law_11_what_diverged_is_in_no_mean(self, load):
        config = load(CRITICAL, "seeds=4")
        bad = ("blur_0-3_of_5", 2)
        table = curves(config, made_up(config, losing, status=lambda *at: "diverged" if at == bad else "finished"))
        row = table[table.run == bad[0]].iloc[0]
        assert row.n == 3
        assert row.accuracy == pytest.approx(np.mean([losing(bad[0], s)[0][0] for s in (0, 1, 3)]))


def test_traces_are_summed_over_layers_then_averaged_over_seeds(load):
    config = load(CRITICAL)

    def probes(label, seed):
        layers = [
            row("train", 0, e, 2 * e, "fisher_trace", part, (e + 1) * v * (seed + 1))
            for e in (0, 5)
            for part, v in (("a", 1.0), ("b", 3.0))
        ]
        return [*layers, row("test", 0, 5, 10, "dormant_units", "a", 0.25 * seed)]

    table = trace_table(made_up(config, losing, probes))
    clear = table[table.label == "clear_5"].set_index(["probe", "part", "epoch"])
    assert clear.loc[("fisher_trace", TOTAL, 5), "mean"] == pytest.approx(6 * (4 + 8) / 2)
    assert clear.loc[("fisher_trace", "b", 0), "mean"] == pytest.approx((3 + 6) / 2)
    assert clear.loc[("dormant_units", "a", 5), "mean"] == pytest.approx(0.125)
    assert ("dormant_units", TOTAL, 5) not in clear.index


class TestConsolidated:
    """Protection of the impaired epochs."""

    def test_every_strength_at_every_length_beside_a_clear_reference(self, load):
        settings = settings_of(load(CONSOLIDATED))
        assert list(settings) == [
            "clear",
            *(f"{name}_{n}" for n in (1, 2) for name in ("naive", "mas-0", "mas-10", "ewc-5")),
        ]
        assert settings["clear"].benchmark.stream == "whole"
        assert settings["mas-10_2"].benchmark.stream == "deficit_then_clear"
        assert settings["mas-10_2"].training.epochs == [2, 2]
        assert settings["mas-10_2"].strategy.lam == 10.0
        assert settings["mas-10_1"].training.epochs == [1, 2]

    def test_scores_equal_sums_by_hand(self, load):
        config = load(CONSOLIDATED, "seeds=4")

        def accuracy(label, seed):
            final = 0.8 - 0.1 * label.startswith("mas-10") - 0.01 * seed * (1 + label.startswith("mas-10"))
            return [[0.95]] if label == "clear" else [[0.7, 0.3], [0.6 - 0.02 * seed, final]]

        traces: dict = {(0, 0): {"a": 1.0, "b": 1.0}, (0, 1): {"a": 6.0, "b": 3.0}, (1, 0): {"a": 4.0, "b": 1.0}}
        traces |= {(1, 2): {"a": 1.0, "b": 2.0}}
        rows = [
            row("train", t, e, e, "fisher_trace", part, v) for (t, e), own in traces.items() for part, v in own.items()
        ]
        table = scores_table(config, made_up(config, accuracy, lambda label, seed: rows))
        own = table[(table.strategy == "mas") & (table.strength == 10) & (table.length == 2)].set_index("score")
        finals = np.array([accuracy("mas-10_2", s)[1][1] for s in range(4)])
        assert own["mean"].accuracy == pytest.approx(finals.mean())
        assert own["mean"].impaired_accuracy == pytest.approx(0.6 - 0.03)
        assert own["mean"].forgetting == pytest.approx(0.1 + 0.03)
        assert own["mean"].intransigence == pytest.approx(0.95 - finals.mean())
        assert own["mean"].trace_peak == 9.0
        assert own["mean"].trace_final == 3.0
        assert own["mean"].share_shift == pytest.approx(share_shift(traces[1, 0], traces[1, 2]))
        naive = np.array([accuracy("naive_2", s)[1][1] for s in range(4)])
        assert own["difference"].accuracy == pytest.approx((finals - naive).mean())
        assert own["p"].accuracy == pytest.approx(stats.ttest_rel(finals, naive).pvalue)

    def test_without_strength_it_is_naive(self, load):
        settings = settings_of(load(CONSOLIDATED))
        naive, unprotected, held = (
            trained(Cell(label, 0, settings[label])) for label in ("naive_2", "mas-0_2", "mas-10_2")
        )
        assert unprotected.accuracy == naive.accuracy
        assert unprotected.probes == naive.probes
        assert held.probes != naive.probes


@pytest.mark.parametrize(
    "data", [CRITICAL, CRITICAL | ANNEALED, CONSOLIDATED], ids=["critical", "annealed", "protected"]
)
def test_a_run_writes_its_files_and_is_resumed(load, tmp_path, data):
    config, folder = load(data), tmp_path / "run"
    outcome = run_experiment(config, folder, workers=1)
    shown = write_report(Store(folder), config, outcome.results)
    assert not outcome.failed
    assert len(shown.table.rows) > 3
    assert all(len(cells) == len(shown.table.headings) for cells in shown.table.rows)
    if config.experiment == "critical_period":
        assert bool(shown.notes[0].startswith("The learning rate is constant")) == (data is CRITICAL)
        names = {"removal", "window", "shares", "trace_fisher_trace", "trace_accuracy"}
        assert {path.stem for path in (folder / "figures").iterdir()} == names
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png") == len(list((folder / "figures").iterdir()))
    (folder / "cells" / f"{outcome.results.records[0].label}-seed0.json").unlink()
    before = probes_table(outcome.results.records)
    again = run_experiment(config, folder, workers=1)
    assert again.kept == len(cells_of(config)) - 1
    pd.testing.assert_frame_equal(probes_table(again.results.records), before)
    assert write_report(Store(folder), *read_folder(folder)) == shown


@pytest.mark.parametrize("data", [CRITICAL | {"trace": None}, CONSOLIDATED], ids=["critical", "protected"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_with_one_seed_there_is_no_talk_of_intervals(load, tmp_path, data, seeds):
    def accuracy(label, seed):
        return [[0.9]] if label == "clear" or "trace" in data else [[0.9, 0.1], [0.8, 0.7 - 0.1 * seed]]

    config, folder = load(data, f"seeds={seeds}"), tmp_path / "run"
    shown = write_report(Store(folder), config, Results(made_up(config, accuracy)))
    page = (folder / "report.html").read_text().replace("no interval", "")
    assert ("interval" in page) == ("fewer than five seeds" in page) == ("t-test" in page) == (seeds == 2)
    assert ("p &lt; 0.05" in page) == (seeds == 2 and "trace" not in data)
    assert shown.title.endswith("one seed: no interval, no test" if seeds == 1 else "mean [95 % interval over seeds]")


@pytest.mark.parametrize("gone", ["clear_5", "blur_0-3_of_5", "clear_2"])
def test_a_report_is_made_of_what_is_finished(load, tmp_path, gone):
    config, folder = load(CRITICAL | ANNEALED, "seeds=1"), tmp_path / "run"
    results = run_experiment(config, folder, workers=1).results
    results.records = [record for record in results.records if record.label != gone]
    assert write_report(Store(folder), config, results).table.rows


def test_what_is_no_longer_asked_for_goes_from_the_folder(load, tmp_path):
    folder, fewer = tmp_path / "run", ("trace=null", "other_deficits=[]", "seeds=1")
    run_experiment(load(CRITICAL | ANNEALED, *fewer), folder, workers=1)
    for changes in (fewer, (*fewer, "removal=[]")):
        config = load(CRITICAL | ANNEALED, *changes)
        write_report(Store(folder), config, read_results(config, Store(folder)))
        there = "removal=[]" not in changes
        assert (folder / "control.csv").exists() == there
        assert (folder / "figures" / "removal.png").exists() == there
    assert (folder / "curves.csv").exists()


def test_law_11_a_run_that_blows_up_is_diverged_whatever_looks_at_it(load, tmp_path):
    probes = [{"name": name, "unit": "iterations"} for name in ("effective_rank", "fisher_trace", "mean_weight")]
    probes.append({"name": "information", "beta": 0.1, "prior_std": 1, "unit": "iterations"})
    config = load(
        CRITICAL | {"trace": {"end": 3, "probes": probes}},
        *("training.lr=1e30", "model.norm=none", "seeds=1", "window=null", "other_deficits=[]"),
    )
    outcome = run_experiment(config, tmp_path / "run", workers=1)
    assert not outcome.failed
    assert {record.outcome.status for record in outcome.results.records} == {"diverged"}
    shown = write_report(Store(tmp_path / "run"), config, outcome.results)
    assert {cells[3] for cells in shown.table.rows} == {"–"}


def _wreck(outcome):
    outcome.status, outcome.reason, outcome.probes = "diverged", "loss is nan", []


@pytest.mark.parametrize("data", [CRITICAL, CONSOLIDATED], ids=["critical", "protected"])
def test_law_11_seeds_that_diverged_are_counted_in_the_table(load, tmp_path, data):
    config, folder = load(data), tmp_path / "run"
    results = run_experiment(config, folder, workers=1).results
    label = "blur_0-3_of_5" if data is CRITICAL else "mas-10_2"
    survivor, wrecked = (record for record in results.records if record.label == label)
    assert (survivor.seed, wrecked.seed) == (0, 1)
    _wreck(wrecked.outcome)
    wrecked.outcome.accuracy = [[0.0, 0.0], [0.0, 0.0]]
    shown = write_report(Store(folder), config, results)
    assert shown.table.headings[-1] == "diverged"
    told = {tuple(cells[:3]): cells[-1] for cells in shown.table.rows if cells[-1]}
    found = {("removal", "blur", "3"): "1 of 2"} if data is CRITICAL else {("mas", "10", "2"): "1 of 2"}
    assert told == found
    accuracy = next(cells[3] for cells in shown.table.rows if tuple(cells[:3]) in found)
    assert accuracy.split()[0].rstrip("*") == f"{100 * survivor.outcome.accuracy[-1][-1]:.1f}"
    assert "points that lack some are open" in (folder / "report.html").read_text()


@pytest.mark.parametrize("strategies", [[{"name": "naive"}], [{"name": "naive"}, {"name": "mas", "lam": 0.0}]])
def test_protection_without_strengths_is_drawn_too(load, tmp_path, strategies):
    config, folder = load(CONSOLIDATED | {"strategies": strategies, "seeds": 1}), tmp_path / "run"
    shown = write_report(Store(folder), config, run_experiment(config, folder, workers=1).results)
    assert len(shown.table.rows) == 2 * len(strategies)
    assert (folder / "figures" / "strengths.png").is_file()


def test_a_reference_that_diverged_is_said(load, tmp_path):
    config, folder = load(CRITICAL, "trace=null"), tmp_path / "run"
    results = run_experiment(config, folder, workers=1).results
    accuracy = {(record.label, record.seed): record.outcome.accuracy[-1][-1] for record in results.records}
    for record in results.records:
        if record.cell.id == "clear_2-seed1":
            _wreck(record.outcome)
    table = curves(config, results.records).set_index(["curve", "deficit", "epoch"])
    row = table.loc[("removal", "blur", 3)]
    assert (row.n, row.diverged, row.loss_n) == (2, 0, 1)
    assert row.loss == pytest.approx(accuracy["clear_2", 0] - accuracy["blur_0-3_of_5", 0])
    shown = write_report(Store(folder), config, results)
    assert next(cells for cells in shown.table.rows if cells[:3] == ["removal", "blur", "3"])[5].endswith(
        "(1 of 2 seeds)"
    )


def test_the_peak_is_of_data_that_were_trained_on(load):
    config = load(CONSOLIDATED, "seeds=1")
    records = [CellRecord(cell, trained(cell)) for cell in cells_of(config)]
    for record in records:  # clear data, before they are trained on
        rows = record.outcome.probes
        record.outcome.probes = [replace(row, value=1e9) if _moment(row) == (1, 0, 0) else row for row in rows]
    table = scores_table(config, records).set_index(["strategy", "strength", "length", "score"])["mean"]
    ewc = next(record.outcome for record in records if record.label == "ewc-5_2")
    seen = [row for row in ewc.probes if row.data == "train"]
    totals = {}
    for row in seen:
        totals[row.experience, row.epoch] = totals.get((row.experience, row.epoch), 0.0) + row.value
    in_training = [totals[at] for at in ((0, 1), (0, 2), (1, 1), (1, 2))]
    assert table["ewc", 5.0, 2, "trace_peak"] == pytest.approx(max(in_training))
    assert table["ewc", 5.0, 2, "trace_final"] == pytest.approx(totals[1, 2])


def _moment(row):
    return row.experience, row.epoch, row.iteration


def test_of_several_fisher_traces_the_first_is_told():
    rows = [
        ("clear_2", probe, "train", TOTAL, 0, epoch, epoch, value)
        for probe, values in (("exact", (1.0, 5.0, 2.0)), ("sampled", (1.0, 9.0, 8.0)))
        for epoch, value in enumerate(values)
    ]
    columns = ["label", "probe", "data", "part", "experience", "epoch", "iteration", "mean"]
    table = pd.DataFrame(rows, columns=columns)
    loss, exact, sampled = (probe_options(name, label=label) for name, label in TITLES)
    assert list(fisher_traces(table, [loss, exact, sampled])["mean"]) == [1.0, 5.0, 2.0]
    assert list(fisher_traces(table, [sampled, exact])["mean"]) == [1.0, 9.0, 8.0]
    assert fisher_traces(table, [loss]).empty
    assert fisher_traces(pd.DataFrame(columns=columns), [exact]).empty


TITLES = (("loss", None), ("fisher_trace", "exact"), ("fisher_trace", "sampled"))


def test_a_probe_may_have_any_label(load, tmp_path):
    """The Fisher trace is found by the probe's name: `x` is one, and `fisher_trace` here is none."""
    probes = "[{name: loss, label: fisher_trace}, {name: fisher_trace, label: x, data: [train, current]}]"
    few = ("removal=[]", "window=null", "other_deficits=[]", "seeds=1")
    config, folder = load(CRITICAL, f"trace.probes={probes}", *few), tmp_path / "run"
    results = run_experiment(config, folder, workers=1).results
    write_report(Store(folder), config, results)
    names = {"shares", "trace_fisher_trace", "trace_x"}
    assert {path.stem for path in (folder / "figures").iterdir()} == names
    traces = trace_table(results.records)
    assert set(traces[traces.part == TOTAL].probe) == {"x"}
    assert set(traces[traces.probe == "fisher_trace"].part) == {""}


def test_looking_at_the_end_alone_gives_no_shift(load, tmp_path):
    config = load(CONSOLIDATED, "probes=[{name: fisher_trace, every: end}]", "seeds=1", "lengths=[1]")
    results = run_experiment(config, tmp_path / "run", workers=1).results
    table = scores_table(config, results.records).set_index("score")
    assert table.loc["share_shift", "mean"].isna().all()
    assert table.loc["trace_final", "mean"].notna().all()


def test_a_shift_begins_with_the_first_look_from_then_on():
    traces = {(0, 4, 40): {"a": 1.0, "b": 1.0}, (1, 0, 0): {"a": 3.0, "b": 1.0}, (1, 0, 5): {"a": 9.0, "b": 1.0}}
    traces[1, 1, 10] = {"a": 1.0, "b": 9.0}
    assert shift(traces, (1, 0)) == pytest.approx(share_shift(traces[1, 0, 0], traces[1, 1, 10]))


def test_a_growing_head_can_be_probed(load):
    config = load(TestOverAStream.STREAM, "model.head=growing", "probes=[{name: gradient_norm}, {name: loss}]")
    assert trained(cells_of(config)[0]).finished


def test_law_10_agem_draws_from_the_cells_seed(load):
    config = load(TestOverAStream.STREAM, "strategies=[{name: agem}]", "benchmark.experiences=3")
    found = []
    for seed in (1, 2):
        random.seed(seed)
        found.append(trained(cells_of(config)[0]).accuracy)
    assert found[0] == found[1]


def test_law_9_workers_cannot_matter(load, tmp_path):
    small = CRITICAL | {"removal": [0, 1], "other_deficits": [], "window": None, "trace": {"end": 1}, "seeds": 1}
    config = load(small)
    one, two = (run_experiment(config, tmp_path / str(n), workers=n).results.records for n in (1, 2))
    assert [record.outcome.probes for record in one] == [record.outcome.probes for record in two]
    assert [record.outcome.accuracy for record in one] == [record.outcome.accuracy for record in two]


def test_law_10_deficits_draw_from_a_stream_of_their_own(load):
    """Noise instead of blur changes no shuffling, and no other network's start."""
    noisy = CRITICAL | {"deficit": {"name": "noise"}, "trace": {"end": 1, "probes": [{"name": "mean_weight"}]}}
    blurred = CRITICAL | {"trace": {"end": 1, "probes": [{"name": "mean_weight"}]}}
    a, b = (settings_of(load(data)) for data in (noisy, blurred))
    cells = [Cell("x", 0, a["noise_0-1_of_3"]), Cell("x", 0, b["blur_0-1_of_3"])]
    first = [trained(cell).probes for cell in cells]
    starts = [next(row.value for row in rows if row.probe == "mean_weight") for rows in first]
    assert starts[0] == starts[1]
    noise = SCHEDULED_DEFICIT_MODELS["noise"](end=1)
    plugins = [make_deficit_plugin(noise, whole("digits"), seed) for seed in (0, 1)]
    assert len({plugin.seed for plugin in plugins} | {stream_seed(n, "deficit") for n in (0, 1)}) == 4


class TestOverAStream:
    """`experiment: forgetting` with probes, and with a deficit."""

    STREAM = {  # noqa: RUF012
        "experiment": "forgetting",
        "benchmark": {"stream": "split", "dataset": "digits", "experiences": 2},
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"epochs": 2, "batch_size": 200},
        "strategies": [{"name": "naive"}, {"name": "mas"}],
        "seeds": 1,
    }

    def test_probes_change_no_result_and_are_drawn(self, load, tmp_path):
        probed = self.STREAM | {"probes": [{"name": "fisher_trace"}, {"name": "dormant_units", "data": ["test"]}]}
        folders = [tmp_path / "plain", tmp_path / "probed"]
        results = []
        for folder, data in zip(folders, (self.STREAM, probed), strict=True):
            config = load(data)
            results.append(run_experiment(config, folder, workers=1).results)
            write_report(Store(folder), config, results[-1])
        plain, looked = ([record.outcome.accuracy for record in own.records] for own in results)
        assert plain == looked
        figures = {path.stem for path in (folders[1] / "figures").glob("trace_*")}
        assert figures == {"trace_fisher_trace_train", "trace_dormant_units_test"}
        assert (folders[1] / "traces.csv").is_file()
        assert not (folders[0] / "traces.csv").exists()
        assert "What the probes saw" in (folders[1] / "report.html").read_text()

    def test_the_table_of_a_stream_has_the_last_look_of_each_experience(self):
        rows = [
            ("naive", "fisher_trace", "train", part, experience, epoch, 5 * epoch, 100 * experience + 10 * epoch + size)
            for experience in (0, 1)
            for epoch in (1, 2)
            for part, size in (("0", 1), ("2", 2), (TOTAL, 3))
        ]
        columns = ["label", "probe", "data", "part", "experience", "epoch", "iteration", "mean"]
        section = stream_section(pd.DataFrame(rows, columns=columns))
        assert list(section.table.headings) == ["probe", "part", "data", "strategy", "after 1", "after 2"]
        assert section.table.rows == [["fisher_trace", TOTAL, "train", "naive", "23", "123"]]
        assert section.figures == ["trace_fisher_trace_train"]

    def test_a_deficit_in_some_epochs_of_a_stream(self, load):
        impaired = self.STREAM | {"deficit": {"name": "flip", "start": 0, "end": 2}}
        looked = impaired | {"probes": [{"name": "loss", "data": ["train", "current", "impaired_train"]}]}
        clear, blind, probed = (trained(cells_of(load(data))[0]) for data in (self.STREAM, impaired, looked))
        assert blind.accuracy != clear.accuracy
        assert blind.accuracy == probed.accuracy
        values = {(row.data, row.experience, row.epoch): row.value for row in probed.probes}
        for (data, experience, epoch), value in values.items():
            if data == "current":
                lasts = experience == 0  # at the end of the last impaired epoch too: those data were trained on
                assert value == values["impaired_train" if lasts else "train", experience, epoch]

    def test_epochs_may_differ_by_experience(self, load):
        config = load(self.STREAM, "training.epochs=[1, 3]", "probes=[{name: mean_weight}]")
        rows = trained(cells_of(config)[0]).probes
        assert [(row.experience, row.epoch) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]

    def test_momentum_goes_on_where_the_optimizer_is_not_reset(self, load):
        config = load(
            self.STREAM,
            *("training.optimizer=sgd", "training.momentum=0.9", "training.reset_optimizer=false"),
            "benchmark.scenario=task",
        )
        assert trained(cells_of(config)[0]).finished


def _without(data, key):
    return {name: value for name, value in data.items() if name != key}


MISTAKES = [
    (CRITICAL, ["deficit.factor=9"], "deficit: blur: factor is 9; images of 8x8 pixels allow 1 to 8"),
    (CRITICAL, ["deficit.name=blurr"], "found 'blurr', did you mean 'blur'?; allowed: blur, flip"),
    (CRITICAL, ["deficit.fctor=2"], "deficit.fctor: unknown key, did you mean 'factor'?; allowed: name, label, factor"),
    (CRITICAL, ["other_deficits.0.name=blur"], "found 'blur', which is the deficit; add a label"),
    (CRITICAL, ["other_deficits=[{name: flip}, {name: flip}]"], "found a second 'flip'; add a label of its own"),
    (CRITICAL, ["other_deficits=[{name: missing_channel}]"], "missing_channel: channel is 0; images of 1 channel"),
    (CRITICAL, ["removal=[]"], "deficits side by side need removal"),
    (CRITICAL, ["removal=[]", "window=null", "trace=null", "other_deficits=[]"], "give removal, window or trace"),
    (CRITICAL, ["window.onset=[0]"], "window.onset: unknown key, did you mean 'onsets'?; allowed: length, onsets"),
    (CRITICAL, ["window=3"], "window: found 3; allowed: a map with length, onsets"),
    (CRITICAL, ["deficit=blur"], "deficit: found 'blur'; allowed: a map, such as {name: ...}"),
    (CRITICAL, ["window.length=0"], "window.length: found 0; allowed: greater than 0"),
    (CRITICAL, ["trace.probes=[{name: fisher}]"], "found 'fisher', did you mean 'fisher_trace'?; allowed: accuracy, "),
    (CRITICAL, ["trace.probes=[{name: information, prior_std: 1}]"], "probes[0].beta: missing; add it: it has no def"),
    (_without(CRITICAL, "deficit"), [], "deficit: missing; add it: a map such as {name: blur}"),
    (_without(CONSOLIDATED, "lengths"), [], "lengths: missing; add it: a list of epochs such as [20, 40]"),
    (_without(CONSOLIDATED, "benchmark"), [], "benchmark: missing; add it: a map such as {dataset: digits}"),
    (CRITICAL, ["trace.probes=[{name: loss, data: [clear]}]"], "found 'clear'; allowed: train, test, impaired_train"),
    (CRITICAL, ["trace.probes=[{name: loss}, {name: loss}]"], "found a second 'loss'"),
    (CRITICAL, ["trace.probes=[{name: loss, label: final_accuracy}]"], "label: found 'final_accuracy', which every"),
    (CRITICAL, ["window.onsets=[0, 0]"], "each once"),
    (CRITICAL, ["removal=[1, 1]"], "each once"),
    (CRITICAL, ["training.epochs=[1, 2]"], "training.epochs: found a list; allowed: a number"),
    (CRITICAL, ["training.schedule={name: cosine, epochs: 4}"], "epochs is 4, and there are more to train"),
    (CRITICAL, ["training.schedule={name: cosin}"], "found 'cosin', did you mean 'cosine'?; allowed: exponential"),
    (CRITICAL, ["training.batch_size=59"], "found 59, which leaves a last batch of 1 of 60 images, too few for BatchN"),
    (CRITICAL, ["other_deficits.0.label=Blur"], "found 'blur', which is the deficit; add a label"),
    (
        CRITICAL,
        ["trace.probes=[{name: loss, data: [train, train]}]"],
        "probes[0].data: found ['train', 'train']; allow",
    ),
    (CRITICAL, ["benchmark.tran=3"], "benchmark.tran: unknown key, did you mean 'train'?; allowed: stream, dataset, "),
    (CRITICAL, ["benchmark=3"], "benchmark: found 3; allowed: a map, such as {stream: ...}"),
    (CRITICAL, ["control=none"], "control: found 'none'; allowed: lr_matched"),
    (CRITICAL, ["benchmark.stream=split"], "benchmark"),
    (CRITICAL, ["experiment=critical"], "found 'critical', did you mean 'critical_period'?; allowed: forgetting, "),
    (CONSOLIDATED, ["strategies.1.lam=[-1]"], "greater than or equal to 0"),
    (CONSOLIDATED, ["strategies.1.lam=[1, 1]"], "strategies[1].lam: found [1.0, 1.0]; allowed: each strength once"),
    (
        CONSOLIDATED,
        ["strategies.1.lam=[1, 1.0000001]"],
        "found [1.0, 1.0000001]; allowed: each strength once, as told by",
    ),
    (
        CONSOLIDATED,
        ["strategies.0.label=mas-1", "strategies.1.lam=1"],
        "two runs would have the label 'mas-1_1'; give one",
    ),
    (
        CRITICAL,
        ["seeds={select: [1, 2]}"],
        "seeds.select: experiment: critical_period has no ACC to choose by; give one",
    ),
    (CONSOLIDATED, ["strategies.0.name=joint"], "found 'joint', which sees all data at once"),
    (CONSOLIDATED, ["lengths=[1, 1]"], "each once"),
    (CONSOLIDATED, ["lengths=[0]"], "lengths[0]: found 0; allowed: greater than 0"),
    (CONSOLIDATED, ["probes=[{name: loss, data: [current]}]"], "allowed: train, test, which are impaired in the first"),
    (TestOverAStream.STREAM, ["deficit={name: blur, end: 9}"], "past the end of training after 4 epochs"),
    (
        TestOverAStream.STREAM,
        ["benchmark={stream: deficit_then_clear, dataset: digits, deficit: {name: blur, label: b}}"],
        "benchmark.deficit.label: unknown key; allowed: name, factor, ",
    ),
    (TestOverAStream.STREAM, ["deficit={name: blur, start: 3, end: 2}"], "give 0 <= start < end"),
    (
        TestOverAStream.STREAM,
        ["deficit={name: label_permutation, end: 1}", "benchmark.scenario=class"],
        "label_permutation moves labels between experiences",
    ),
    (TestOverAStream.STREAM, ["deficit={name: blur, end: 1}", "strategies.0.name=joint"], "leave it out"),
    (TestOverAStream.STREAM, ["deficit={name: blur}"], "deficit.end: missing"),
    (TestOverAStream.STREAM, ["probes=[{name: loss, data: [impaired_test]}]"], "there is no deficit; add one"),
    (TestOverAStream.STREAM, ["training.epochs=[1, 2, 3]"], "found 3 numbers; allowed: one for all, or 2"),
    (TestOverAStream.STREAM, ["probes=[{name: noise_curve, betas: [], prior_std: 1}]"], "probes[0].betas"),
]


def test_what_a_missing_key_is_told_to_be_is_enough(load):
    load(_without(CRITICAL, "benchmark") | {"benchmark": {"dataset": "digits"}, "deficit": {"name": "blur"}})
    load(CONSOLIDATED | {"lengths": [20, 40], "strategies": [{"name": "naive"}, {"name": "mas", "lam": 1}]})


@pytest.mark.parametrize(("data", "changes", "message"), MISTAKES, ids=[str(c) for _, c, _ in MISTAKES])
def test_mistakes_are_one_clear_line(load, data, changes, message):
    with pytest.raises(UserError) as error:
        load(data, *changes)
    (line,) = error.value.lines
    assert message in line
    assert "\n" not in line


@pytest.mark.slow
def test_a_blurred_youth_is_never_quite_made_up_for(tmp_path):
    """The acceptance figures of configs/critical_period_digits.yaml, 10 seeds."""
    changes = ["window=null", "removal=[0, 80]"]
    config = load_config(CONFIGS / "critical_period_digits.yaml", changes)
    outcome = run_experiment(config, tmp_path / "run")
    table = curves(config, outcome.results.records).set_index(["deficit", "epoch"])
    assert table.loc[("blur", 80)].loss_ci_low > 0
    assert table.loc[("blur", 80)].p_holm < 0.05
    assert (table.train_accuracy == 1.0).all()
    for harmless in ("flip", "label_permutation"):
        assert table.loc[(harmless, 80)].loss_ci_low < 0
    traces = trace_table(outcome.results.records)
    clear = traces[(traces.label == "clear_100") & (traces.part == TOTAL)].set_index("epoch")["mean"]
    assert clear.idxmax() <= 10
    assert clear.iloc[-1] < clear.max() / 5


def test_a_damaged_cell_is_one_clear_line(load, tmp_path):
    config = load(CRITICAL | {"removal": [0, 1], "other_deficits": [], "window": None, "trace": None, "seeds": 1})
    run_experiment(config, tmp_path / "run", workers=1)
    path = tmp_path / "run" / "cells" / "clear_2-seed0.json"
    record = json.loads(path.read_text())
    broken = {
        r"damaged \(KeyError: 'accuracy'\); delete it and run again": _without(record, "accuracy"),
        r"damaged \(benchmark: Field required\)": record | {"settings": _without(record["settings"], "benchmark")},
        r"damaged \(ValueError: a list in place of a map\)": [],
        r"is of format 1; this version of mas reads format 2": _without(record, "version"),
        r"is of format 3; this version": record | {"version": 3},
    }
    for message, data in broken.items():
        path.write_text(json.dumps(data))
        with pytest.raises(UserError, match=message) as error:
            read_folder(tmp_path / "run")
        assert len(error.value.lines) == 1


def test_torch_is_left_as_it_was(load):
    state = torch.get_rng_state()
    load(CRITICAL)
    assert torch.equal(torch.get_rng_state(), state)
