"""Whole runs in small: laws 9 to 11, resuming, what is written, and that nothing half-written stays."""

import csv
import json
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from scipy import stats
from torch import nn

import mas.experiments.models
from mas.benchmarks import split
from mas.experiments import cell as cell_module
from mas.experiments.cell import build_strategy, run_cell
from mas.experiments.cells import expand
from mas.experiments.config import resolved
from mas.experiments.errors import UserError
from mas.experiments.loading import load_config
from mas.experiments.models import MultiHead, build_model
from mas.experiments.report import pages, write_report
from mas.experiments.report.forgetting import draw_figures, table_rows, write_forgetting_report
from mas.experiments.results import Results, read_results
from mas.experiments.run import default_workers, run_experiment
from mas.experiments.seeds import stream_seed
from mas.experiments.statistics import mean_and_interval
from mas.experiments.store import Store, environment
from mas.experiments.summary import (
    best_label,
    comparison_table,
    reference_of,
    results_table,
    scores_table,
    summary_table,
)
from tests.data import make_folder

TEXT = """\
experiment: forgetting
benchmark: {stream: split, dataset: digits, experiences: 2, scenario: domain, class_order: random}
model: {name: mlp, hidden: [8]}
training: {epochs: 1, batch_size: 64}
strategies:
  - {name: naive}
  - {name: joint}
  - {name: mas, lam: 1.0}
  - {name: ewc, lam: 100.0, labels: sampled, max_samples: 20}
seeds: 2
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def config(config_file):
    return load_config(config_file)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished run, made once by this process."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    outcome = run_experiment(config, folder, workers=1)
    write_report(Store(folder), config, outcome.results)
    return folder, outcome


def without_time(record):
    return {key: value for key, value in record.items() if key != "seconds"}


def test_avalanches_own_deprecations_are_not_shown_and_other_warnings_are(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(TEXT.replace("{name: naive}", "{name: replay, mem_size: 5}"))
    cell = expand(load_config(tmp_path / "c.yaml"))[0]
    with warnings.catch_warnings(record=True) as caught:
        run_cell(cell)
    assert not caught
    monkeypatch.setattr(cell_module, "_train", lambda cell: warnings.warn("look here", UserWarning, stacklevel=1) or {})
    with pytest.warns(UserWarning, match="look here"):
        run_cell(cell)


# Law 10: paired seeds.


class Trace(SupervisedPlugin):
    """Write down the initial weights and every training batch; draw from the global stream in between."""

    def __init__(self, greedy):
        super().__init__()
        self.greedy, self.batches, self.noise = greedy, [], []

    def before_training_iteration(self, strategy, **kwargs):
        self.batches.append(strategy.mb_x.clone())
        self.noise.append(torch.rand(1).item())
        if self.greedy:
            torch.rand(3)

    def after_training_exp(self, strategy, **kwargs):
        if self.greedy:
            torch.rand(5)


def traced(cell, greedy=False, plugins=()):
    settings = cell.settings["benchmark"]
    benchmark = split(**{k: v for k, v in settings.items() if k != "stream"}, seed=stream_seed(cell.seed, "stream"))
    strategy = build_strategy(cell, benchmark)
    start = [p.detach().clone() for p in strategy.model.parameters()]
    trace = Trace(greedy)
    strategy.plugins.extend([*plugins, trace])
    if cell.settings["strategy"]["name"] == "joint":
        return start, [], []
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return start, trace.batches, trace.noise


def test_law_10_every_strategy_sees_the_same_weights_stream_and_batch_order(config):
    first = traced(expand(config)[0])
    assert len(first[1]) > 20
    for i, cell in enumerate(c for c in expand(config) if c.seed == 0):
        torch.manual_seed(100 + i)  # whatever the global stream stands at
        start, batches, _ = traced(cell, greedy=True)
        assert all(torch.equal(a, b) for a, b in zip(start, first[0], strict=True))
        if cell.settings["strategy"]["name"] != "joint":
            assert all(torch.equal(a, b) for a, b in zip(batches, first[1], strict=True))


def test_law_10_training_noise_does_not_depend_on_how_the_order_was_drawn(config):
    """Replay draws one order more before an epoch's first step; the noise in that step is the same."""
    cell = expand(config)[0]
    _, batches, noise = traced(cell)
    _, replayed, replay_noise = traced(cell, plugins=[ReplayPlugin(20)])
    second = next(i for i, batch in enumerate(replayed) if len(batch) > 64)  # with memory: the second experience
    assert len(batches[second]) == 64
    assert replay_noise[: second + 1] == noise[: second + 1]


def test_law_10_other_seeds_see_other_weights_streams_and_orders(config):
    (a_start, a_batches, _), (b_start, b_batches, _) = (
        traced(cell) for cell in expand(config) if cell.label == "naive"
    )
    assert not torch.equal(a_start[0], b_start[0])
    assert not torch.equal(a_batches[0], b_batches[0])


def test_law_10_the_global_stream_does_not_matter(config, finished):
    cell = expand(config)[3]
    torch.manual_seed(12345)
    np.random.seed(5)  # the global stream is what this is about
    record = Store(finished[0]).finished(cell)
    assert without_time(run_cell(cell)).items() <= record.items()


def test_a_cell_runs_on_one_thread_and_leaves_the_count_as_it_was(config, monkeypatch):
    seen = []
    monkeypatch.setattr(cell_module, "_train", lambda cell: seen.append(torch.get_num_threads()) or {})
    torch.set_num_threads(2)
    run_cell(expand(config)[0])
    assert seen == [1]
    assert torch.get_num_threads() == 2


# Law 9: workers cannot matter.


@pytest.mark.slow
def test_law_9_one_worker_or_two(config, finished, tmp_path):
    other = run_experiment(config, tmp_path / "two", workers=2)
    assert [without_time(r) for r in other.results.records] == [without_time(r) for r in finished[1].results.records]


# Law 8 at the size of a cell, and running again.


def test_a_second_run_redoes_nothing(config, finished, monkeypatch):
    folder, before = finished
    monkeypatch.setattr("mas.experiments.run.run_cell", lambda cell: pytest.fail("ran again"))
    again = run_experiment(config, folder, workers=1)
    assert again.kept == 8
    assert again.results == before.results


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(config, finished, tmp_path, monkeypatch):
    folder, real, count = tmp_path / "killed", run_cell, 0

    def killed_at_the_fourth(cell):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return real(cell)

    monkeypatch.setattr("mas.experiments.run.run_cell", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, folder, workers=1)
    assert len(list((folder / "cells").iterdir())) == 3
    (folder / "cells" / ".mas-seed1.json-left").write_text("{")  # as of a crash while it was written
    monkeypatch.setattr("mas.experiments.run.run_cell", real)
    outcome = run_experiment(config, folder, workers=1)
    assert outcome.kept == 3
    assert [without_time(r) for r in outcome.results.records] == [without_time(r) for r in finished[1].results.records]


MORE = (
    "strategies=[{name: l2}, {name: naive}, {name: joint}, {name: mas}, {name: ewc, labels: sampled, max_samples: 20}]"
)


@pytest.mark.parametrize(
    ("change", "new"),
    [("seeds=3", ["naive-seed2", "joint-seed2", "mas-seed2", "ewc-seed2"]), (MORE, ["l2-seed0", "l2-seed1"])],
)
def test_more_seeds_or_strategies_keep_what_is_there(change, new, config_file, finished, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr("mas.experiments.run.run_cell", lambda cell: ran.append(cell.id) or fake(cell))
    folder = tmp_path / "copy"
    for path in finished[0].rglob("*.*"):
        target = folder / path.relative_to(finished[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    outcome = run_experiment(load_config(config_file, [change]), folder, workers=1)
    assert outcome.kept == 8
    assert ran == new


def fake(cell, accuracy=0.5, status="finished"):
    row = [accuracy] * 2
    return {"status": status, "reason": None, "untrained": row, "accuracy": [row, row], "tries": [], "seconds": 0.0}


def test_an_error_in_one_cell_does_not_stop_the_others(config, tmp_path, monkeypatch):
    def breaks(cell):
        if cell.id == "mas-seed1":
            raise ZeroDivisionError("oh")
        return fake(cell)

    monkeypatch.setattr("mas.experiments.run.run_cell", breaks)
    outcome = run_experiment(config, tmp_path / "r", workers=1)
    assert outcome.failed == ["mas-seed1: ZeroDivisionError: oh"]
    assert len(outcome.results.records) == 7
    assert not (tmp_path / "r" / "cells" / "mas-seed1.json").exists()


# The output folder.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epochs=2", "training.epochs is 1 there and 2 here"),
        ("strategies.2.lam=3", "strategy.lam is 1.0 there and 3.0 here"),
        ("benchmark.scenario=class", "benchmark.scenario is domain there and class here"),
    ],
)
def test_a_folder_with_other_results_is_refused_and_left_alone(config_file, finished, change, message):
    folder = finished[0]
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=message):
        run_experiment(load_config(config_file, [change]), folder, workers=1)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "beside"),
    [
        (["seeds=1"], "ewc-seed1 and 3 more"),
        (["seeds=[1, 2]"], "ewc-seed0 and 3 more"),
        (["strategies=[{name: naive}, {name: joint}, {name: mas, lam: 1.0}]"], "ewc-seed0 and 1 more"),
        (["strategies.0.label=plain", "seeds=[0, 1]"], "naive-seed0 and 1 more"),
    ],
)
def test_cells_that_a_config_does_not_have_are_refused_and_left_alone(config_file, finished, changes, beside):
    folder = finished[0]
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(
        UserError, match=f"holds other results: this config has no cell {beside}; choose another folder"
    ):
        run_experiment(load_config(config_file, changes), folder, workers=1)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_how_many_are_kept_is_said_when_the_folder_is_accepted(config, config_file, finished, monkeypatch):
    monkeypatch.setattr("mas.experiments.run.run_cell", lambda cell: pytest.fail("ran"))
    told = []
    run_experiment(config, finished[0], workers=1, begin=told.append)
    assert told == [8]
    with pytest.raises(UserError):
        run_experiment(load_config(config_file, ["seeds=1"]), finished[0], workers=1, begin=told.append)
    assert told == [8]


def test_a_folder_with_other_files_is_refused_and_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds other files and no config.yaml"):
        run_experiment(config, tmp_path, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        run_experiment(config, tmp_path / "thesis.tex", workers=1)


def test_a_damaged_cell_is_said(config, finished, tmp_path):
    folder = tmp_path / "damaged"
    Store(folder).write("config.yaml", "x: 1")
    for content in ('{"label": "nai', "{}", "[]"):
        Store(folder).write("cells/naive-seed0.json", content)
        with pytest.raises(UserError, match=r"naive-seed0.json: is damaged .* delete it and run again"):
            run_experiment(config, folder, workers=1)


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write("a.txt", "old")

    def full(*_):
        raise OSError("disk is full")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="full"):
        store.write("a.txt", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


# Law 11: a blow-up is said.


@pytest.mark.parametrize("strategy", ["naive", "mas", "ewc", "joint"])
def test_law_11_a_blow_up_ends_the_cell_as_diverged(config_file, strategy):
    config = load_config(
        config_file, [f"strategies=[{{name: {strategy}}}]", "training.lr=1e30", "training.optimizer=sgd"]
    )
    result = run_cell(expand(config)[0])
    assert result["status"] == "diverged"
    assert re.search(
        r"loss is (nan|inf) in experience 0, epoch 0, iteration \d|weights of .* not finite", result["reason"]
    )


class ReturnsNaN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Linear(64, 4)

    def forward(self, x):
        return self.features(x.flatten(1)) * torch.nan


def test_law_11_a_model_that_returns_nan_is_diverged_before_it_is_scored(config_file, monkeypatch):
    monkeypatch.setitem(mas.experiments.models.MODELS, "mlp", lambda shape, **options: ReturnsNaN())
    result = run_cell(expand(load_config(config_file))[0])
    assert result["status"] == "diverged"
    assert result["reason"] == "the network's output is not finite in evaluation"
    assert result["untrained"] is None


def records(accuracies, label="naive", diverged=()):
    settings = {"strategy": {"name": label.split("-")[0]}}
    made = []
    for seed, accuracy in enumerate(accuracies):
        r = [[accuracy, 0.25], [accuracy / 2, 0.75]]
        common = {
            "label": label,
            "seed": seed,
            "settings": settings,
            "untrained": [0.5, 0.5],
            "seconds": 1.0,
            "tries": [],
            "probes": [],
        }
        status = "diverged" if seed in diverged else "finished"
        made.append({**common, "accuracy": r, "status": status, "reason": "loss is nan" if seed in diverged else None})
    return made


def test_law_11_diverged_cells_enter_no_mean_and_are_shown():
    summary = summary_table(records([0.5, 0.7, 0.9], diverged={2}))
    acc = summary[summary.score == "ACC"].iloc[0]
    assert acc["mean"] == pytest.approx((0.25 + 0.75 + 0.35 + 0.75) / 4)
    assert acc["n"] == 2
    row = summary[summary.score == "diverged"].iloc[0]
    assert (row["mean"], row["n"]) == (pytest.approx(1 / 3), 3)
    assert table_rows(summary, comparison_table([]))[0][1]["diverged"] == "1 of 3"
    assert results_table(records([0.5, 0.7, 0.9], diverged={2})).seed.unique().tolist() == [0, 1]


def test_law_11_where_every_seed_diverged_there_is_no_number(tmp_path):
    given = [*records([0.5, 0.6]), *records([0.5, 0.6], "mas", diverged={0, 1})]
    rows = dict(write_forgetting_report(Store(tmp_path / "r"), {"x": 1}, Results(given, {}, {})))
    assert rows["mas"] == {"seconds": "1.0", "seeds": "0", "diverged": "2 of 2"}
    page = (tmp_path / "r" / "report.html").read_text()
    assert "2 of 2" in page
    assert "mas, seed 1: loss is nan" in page
    assert not (tmp_path / "r" / "figures" / "matrix_mas.png").exists()
    everything = write_forgetting_report(Store(tmp_path / "s"), {"x": 1}, Results(records([0.5], diverged={0}), {}, {}))
    assert everything == [("naive", {"seconds": "1.0", "seeds": "0", "diverged": "1 of 1"})]


# Statistics and tables.


def test_differences_are_paired_by_seed():
    """Seeds differ by far more than strategies do; only a paired difference sees it."""
    naive, better = records([0.2, 0.6, 1.0]), records([0.24, 0.62, 1.06], "mas")
    table = comparison_table([*naive, *better[::-1]]).set_index(["strategy", "against", "score"])
    gain = table.loc["mas", "naive", "ACC"]
    differences = [0.01, 0.005, 0.015]  # half of half of what the first column gains
    assert tuple(gain[["difference", "ci_low", "ci_high", "n"]]) == pytest.approx(mean_and_interval(differences))
    assert gain["p"] == pytest.approx(stats.ttest_rel(differences, [0, 0, 0]).pvalue)
    assert table.loc[("mas", "naive", "forgetting"), "difference"] == pytest.approx(0.02)
    assert table.loc[("naive", "mas", "ACC"), "difference"] == pytest.approx(-0.01)  # mas is the best
    assert len(table) == 4


def test_only_seeds_that_both_have_are_compared():
    table = comparison_table([*records([0.2, 0.6, 1.0], diverged={0}), *records([0.4, 0.8, 1.0], "mas", diverged={2})])
    gain = table.set_index(["strategy", "against", "score"]).loc["mas", "naive", "ACC"]
    assert gain["n"] == 1
    assert gain["difference"] == pytest.approx((0.8 - 0.6) / 4)
    assert np.isnan(gain["p"])


def test_holm_adjusts_for_the_strategies_compared():
    draw = np.random.default_rng(0)
    level = {"naive": 0.5, "mas": 0.6, "ewc": 0.7}
    table = comparison_table([r for k in level for r in records(level[k] + 0.05 * draw.random(6), k)])
    own = table[(table.against == "naive") & (table.score == "ACC")].set_index("strategy")
    low, high = sorted(own["p"])
    assert sorted(own["p_holm"]) == pytest.approx(sorted([2 * low, max(high, 2 * low)]))


def test_naive_is_naive_by_whatever_name():
    finetune, naive = records([0.4, 0.5, 0.7]), records([0.5, 0.6, 0.9], "mas")
    for r in finetune:
        r["label"] = "finetune"
    for r in naive:
        r["label"] = "naive"
    table = comparison_table([*finetune, *naive])
    assert set(table.against) == {"finetune", "naive"}
    rows = dict(table_rows(summary_table([*finetune, *naive]), table, "finetune"))
    assert rows["naive"]["ACC-naive"] != "–"
    assert "ACC-naive" not in rows["finetune"]


def test_the_best_has_all_seeds():
    given = [*records([0.8] * 5, "mas"), *records([0.9] * 5, "ewc", diverged={1, 2, 3, 4})]
    assert best_label(given) == "mas"
    rows = dict(table_rows(summary_table(given), comparison_table(given)))
    assert (rows["mas"]["seeds"], rows["ewc"]["seeds"], rows["ewc"]["diverged"]) == ("5", "1", "4 of 5")


def test_the_best_is_no_ceiling():
    given = [*records([0.4, 0.5]), *records([0.6, 0.7], "mas"), *records([0.8, 0.9], "joint")]
    assert best_label(given) == "mas"
    assert best_label(records([0.4], diverged={0})) is None
    assert set(comparison_table(given).against) == {"naive", "mas"}


def test_intransigence_is_against_the_ceiling_of_the_same_seed():
    naive, joint = records([0.4, 0.6]), records([0.8, 1.0], "joint")
    for r in joint:
        r["accuracy"][0] = [None, None]
    table = scores_table([*naive, *joint])["intransigence"]
    assert reference_of([*naive, *joint]) == "joint"
    assert table["naive"].tolist() == pytest.approx([(0.4 - 0.4 + 0.75 - 0.75) / 2, (0.5 - 0.6) / 2])
    cumulative = records([0.7, 0.9], "cumulative")
    assert reference_of([*naive, *joint, *cumulative]) == "cumulative"
    table = scores_table([*naive, *joint, *cumulative])["intransigence"]
    assert table["naive"].tolist() == pytest.approx([0.3 / 2, 0.3 / 2])
    assert np.isnan(scores_table(naive)["intransigence"]).all()
    assert reference_of([*naive, *joint, cumulative[0]]) == "joint"  # which has more seeds


def test_what_is_rounded_to_zero_has_no_sign():
    assert pages.percent(-0.0004) == "0.0"
    assert pages.percent(-0.0004, -0.0004, 0.0004) == "0.0 [0.0, 0.0]"
    assert pages.percent(-0.0006, -0.01, -0.0004) == "-0.1 [-1.0, 0.0]"
    assert pages.number(-0.0) == "0"
    assert pages.number(-1e-9, -1.5, -0.0) == "-1e-09 [-1.5, 0]"
    assert pages.percent(np.nan) == "–"


# What a run writes.


def test_results_csv_has_a_row_per_accuracy(config, finished):
    folder, outcome = finished
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["label", "strategy", "seed", "trained_on", "tested_on", "accuracy"]
    # per seed: three strategies with 2 experiences and the untrained network, joint with one row less
    assert len(rows) == 2 * (3 * 6 + 4)
    for row in rows:
        record = next(r for r in outcome.results.records if (r["label"], str(r["seed"])) == (row["label"], row["seed"]))
        t, i = int(row["trained_on"]), int(row["tested_on"])
        source = record["untrained"] if t == -1 else record["accuracy"][t]
        assert float(row["accuracy"]) == source[i]
        assert 0 <= float(row["accuracy"]) <= 1
    assert {r["trained_on"] for r in rows if r["label"] == "joint"} == {"-1", "1"}


def test_accuracies_are_those_of_a_plain_evaluation(config):
    """Train by hand with the same streams, test with plain torch."""
    cell = expand(config)[0]
    options = {k: v for k, v in cell.settings["benchmark"].items() if k != "stream"}
    benchmark = split(**options, seed=stream_seed(cell.seed, "stream"))
    strategy = build_strategy(cell, benchmark)

    def test():
        strategy.model.eval()
        found = []
        for e in benchmark.test_stream:
            x, y, _ = zip(*(e.dataset[i] for i in range(len(e.dataset))), strict=True)
            found.append((strategy.model(torch.stack(x)).argmax(1) == torch.tensor(y)).float().mean().item())
        return found

    expected = [test()]
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        expected.append(test())
    result = run_cell(cell)
    assert np.array([result["untrained"], *result["accuracy"]]) == pytest.approx(np.array(expected), abs=1e-6)


def test_the_optimizer_is_reset_or_not_as_the_config_says(config_file):
    accuracies = [
        run_cell(expand(load_config(config_file, [f"training.reset_optimizer={x}"]))[0]) for x in ("true", "false")
    ]
    assert accuracies[0]["accuracy"][0] == accuracies[1]["accuracy"][0]
    assert accuracies[0]["accuracy"][1] != accuracies[1]["accuracy"][1]


def test_summary_csv(finished):
    summary = pd.read_csv(finished[0] / "summary.csv")
    assert list(summary) == ["strategy", "score", "mean", "ci_low", "ci_high", "n"]
    assert list(summary.strategy.unique()) == ["naive", "joint", "mas", "ewc"]
    joint = summary[summary.strategy == "joint"].set_index("score")
    assert joint.loc["ACC", "n"] == 2
    assert joint.loc["forgetting", "n"] == 0
    assert np.isnan(joint.loc["forgetting", "mean"])


def test_config_and_environment_are_kept(config, finished):
    folder = finished[0]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == resolved(config)
    environment = json.loads((folder / "environment.json").read_text())
    assert len(environment) == 1  # nothing was trained with anything else
    assert environment[0]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert {"git_commit", "processor", "python"} <= environment[0].keys()
    assert environment[0]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert environment[0]["threads"] == 1


@pytest.mark.parametrize("asked", ["default", "avx2"])
def test_the_instruction_set_is_the_one_that_torch_uses(asked):
    code = "from mas.experiments.store import environment as e; import torch; print(e()['cpu_capability'])"
    changed = {**os.environ, "ATEN_CPU_CAPABILITY": asked}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=changed)
    assert done.stdout.strip() in (asked.upper(), "DEFAULT")  # not every processor has the other


def test_the_number_of_threads_is_that_of_a_cell(config, monkeypatch):
    monkeypatch.setattr(cell_module, "_train", lambda cell: {"threads": torch.get_num_threads()})
    torch.set_num_threads(2)
    assert run_cell(expand(config)[0])["threads"] == environment()["threads"]


def test_another_environment_is_added_where_more_is_trained(config_file, tmp_path, monkeypatch):
    folder = tmp_path / "r"
    for number, seeds in ((0, 1), (1, 1), (2, 2), (2, 3)):
        monkeypatch.setattr("mas.experiments.store.environment", lambda number=number: {"python": str(number)})
        run_experiment(load_config(config_file, [f"seeds={seeds}"]), folder, workers=1)
    assert json.loads((folder / "environment.json").read_text()) == [{"python": "0"}, {"python": "2"}]


def test_other_images_of_the_same_name_are_other_results(tmp_path, monkeypatch):
    monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
    text = TEXT.replace("dataset: digits", "dataset: {name: image_folder, path: photos, size: 8}")
    (tmp_path / "c.yaml").write_text(text.replace("seeds: 2", "seeds: 1"))
    for number, root in enumerate((tmp_path / "a", tmp_path / "b")):
        make_folder(root / "photos", {"x": 3, "y": 3}, shade=10 * number)
    run_experiment(load_config(tmp_path / "c.yaml", data_root=tmp_path / "a"), tmp_path / "r", workers=1)
    config = load_config(tmp_path / "c.yaml", data_root=tmp_path / "b")
    with pytest.raises(UserError, match=r"holds results on other images called .*photos.*; give the same --data"):
        run_experiment(config, tmp_path / "r", workers=1)


def test_figures_and_a_page_that_needs_nothing_else(finished):
    folder = finished[0]
    assert sorted(p.name for p in (folder / "figures").iterdir()) == [
        "accuracy_over_stream.png",
        *(f"matrix_{name}.png" for name in ("ewc", "joint", "mas", "naive")),
    ]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page


def test_the_report_is_made_anew_from_the_cells_alone(config, finished):
    folder = finished[0]
    names = [
        "results.csv",
        "summary.csv",
        "report.html",
        *(f"figures/{p.name}" for p in (folder / "figures").iterdir()),
    ]
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    (folder / "figures" / "matrix_old.png").write_bytes(b"")
    write_report(Store(folder), config, read_results(config, Store(folder)))
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert not (folder / "figures" / "matrix_old.png").exists()


def test_no_temporary_files_stay(finished):
    assert not list(finished[0].rglob(".*"))


def test_figures_of_one_seed_and_many_experiences():
    size = 14
    settings = {"strategy": {"name": "naive"}}
    record = {"label": "naive", "seed": 0, "settings": settings, "status": "finished", "reason": None}
    pictures = draw_figures([{**record, "untrained": [0.1] * size, "accuracy": np.eye(size).tolist()}])
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


# Models.


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(0)
    a = build_model("mlp", {"hidden": [5]}, (1, 8, 8), [2], seed=3)
    state = torch.get_rng_state()
    b = build_model("mlp", {"hidden": [5]}, (1, 8, 8), [2], seed=3)
    c = build_model("mlp", {"hidden": [5]}, (1, 8, 8), [2], seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


def test_multi_head_gives_each_sample_its_tasks_head():
    model = MultiHead(nn.Linear(3, 4), 4, [2, 2, 2])
    x, tasks = torch.randn(5, 3), torch.tensor([2, 0, 2, 1, 0])
    expected = torch.stack([model.heads[t](model.body(sample)) for sample, t in zip(x, tasks.tolist(), strict=True)])
    assert torch.allclose(model(x, tasks), expected)
    assert torch.allclose(model(x, 1), model.heads[1](model.body(x)))


def test_task_scenario_trains_one_head_per_task(config_file):
    config = load_config(config_file, ["benchmark.scenario=task", "benchmark.experiences=3"])
    for cell in expand(config)[:4]:
        result = run_cell(cell)
        assert result["status"] == "finished"
        assert np.array(result["accuracy"][-1]).shape == (3,)
    strategy = build_strategy(expand(config)[0], split(experiences=3, scenario="task"))
    assert [head.out_features for head in strategy.model.heads] == [4, 3, 3]


def test_cuda_without_a_gpu_is_one_clear_error_and_writes_nothing(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch sees no GPU here; set training\.device=cpu"):
        run_experiment(load_config(config_file, ["training.device=cuda"]), tmp_path / "r", workers=1)
    assert not (tmp_path / "r").exists()


def test_default_workers_is_a_number():
    assert default_workers() >= 1
