"""Forgetting: scores, their means and differences, tables, figures and the page."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mas.experiments.kinds.forgetting.figures import figures
from mas.experiments.kinds.forgetting.page import headline, page, score_cells
from mas.experiments.kinds.forgetting.scores import (
    best_label,
    comparison_table,
    naive_label,
)
from mas.experiments.kinds.forgetting.tables import chosen_rows, tables
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.report.drawing import png
from mas.experiments.report.text import number, percent
from mas.experiments.reporting import write_report
from mas.experiments.results import Results
from mas.experiments.runner import read_results, run_experiment
from mas.experiments.scores import reference_of, scores_table, summary_table
from mas.experiments.statistics import mean_and_interval
from mas.experiments.store import Store
from mas.experiments.tables import results_table
from tests.experiments.builders import TEXT, make_record, make_records, small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(TEXT)
    return load_config(path)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished run with its report, made once by this process."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    outcome = run_experiment(config, folder, workers=1)
    write_report(Store(folder), config, outcome.results)
    return folder, outcome


def cells_of(records, naive="naive"):
    return score_cells(summary_table(records), comparison_table(records), naive)


# Law 11: what diverged is no number.


def test_law_11_diverged_cells_enter_no_mean_and_are_shown():
    given = make_records([0.5, 0.7, 0.9], diverged={2})
    summary = summary_table(given)
    acc = summary[summary.score == "ACC"].iloc[0]
    assert acc["mean"] == pytest.approx((0.25 + 0.75 + 0.35 + 0.75) / 4)
    assert acc["n"] == 2
    row = summary[summary.score == "diverged"].iloc[0]
    assert (row["mean"], row["n"]) == (pytest.approx(1 / 3), 3)
    assert score_cells(summary, comparison_table([]))["naive"]["diverged"] == "1 of 3"
    assert results_table(given).seed.unique().tolist() == [0, 1]


def test_law_11_where_every_seed_diverged_there_is_no_number(tmp_path):
    given = [*make_records([0.5, 0.6]), *make_records([0.5, 0.6], "mas", diverged={0, 1})]
    config = small_config("naive", "mas", seeds=2)
    shown = write_report(Store(tmp_path / "r"), config, Results(given))
    assert cells_of(given)["mas"] == {"seconds": "1.0", "seeds": "0", "diverged": "2 of 2"}
    assert [row[0] for row in shown.table.rows] == ["naive", "mas"]
    assert shown.table.headings[-2:] == ["seeds", "diverged"]
    assert shown.table.rows[1][1:] == ["–", "–", "0", "2 of 2"]
    text = (tmp_path / "r" / "report.html").read_text()
    assert "2 of 2" in text
    assert "mas, seed 1: loss is nan" in text
    assert not (tmp_path / "r" / "figures" / "matrix_mas.png").exists()


def test_law_11_a_run_of_which_nothing_finished_is_reported(tmp_path):
    given = make_records([0.5], diverged={0})
    shown = write_report(Store(tmp_path / "s"), small_config("naive"), Results(given))
    assert cells_of(given) == {"naive": {"seconds": "1.0", "seeds": "0", "diverged": "1 of 1"}}
    assert shown.table.rows == [["naive", "1 of 1"]]
    assert not list((tmp_path / "s").glob("figures/*"))


# Scores and differences.


def test_differences_are_paired_by_seed():
    """Seeds differ by far more than strategies do; only a paired difference sees it."""
    naive, better = make_records([0.2, 0.6, 1.0]), make_records([0.24, 0.62, 1.06], "mas")
    table = comparison_table([*naive, *better[::-1]]).set_index(["strategy", "against", "score"])
    gain = table.loc["mas", "naive", "ACC"]
    differences = [0.01, 0.005, 0.015]  # half of half of what the first column gains
    assert tuple(gain[["difference", "ci_low", "ci_high", "n"]]) == pytest.approx(mean_and_interval(differences))
    assert gain["p"] == pytest.approx(stats.ttest_rel(differences, [0, 0, 0]).pvalue)
    assert table.loc[("mas", "naive", "forgetting"), "difference"] == pytest.approx(0.02)
    assert table.loc[("naive", "mas", "ACC"), "difference"] == pytest.approx(-0.01)  # mas is the best
    assert len(table) == 4


def test_only_seeds_that_both_have_are_compared():
    first = make_records([0.2, 0.6, 1.0], diverged={0})
    table = comparison_table([*first, *make_records([0.4, 0.8, 1.0], "mas", diverged={2})])
    gain = table.set_index(["strategy", "against", "score"]).loc["mas", "naive", "ACC"]
    assert gain["n"] == 1
    assert gain["difference"] == pytest.approx((0.8 - 0.6) / 4)
    assert np.isnan(gain["p"])


def test_holm_adjusts_for_the_strategies_compared():
    draw = np.random.default_rng(0)
    level = {"naive": 0.5, "mas": 0.6, "ewc": 0.7}
    table = comparison_table([r for k in level for r in make_records(level[k] + 0.05 * draw.random(6), k)])
    own = table[(table.against == "naive") & (table.score == "ACC")].set_index("strategy")
    low, high = sorted(own["p"])
    assert sorted(own["p_holm"]) == pytest.approx(sorted([2 * low, max(high, 2 * low)]))


def test_naive_is_naive_by_whatever_name():
    finetune = make_records([0.4, 0.5, 0.7], "finetune", strategy="naive")
    given = [*finetune, *make_records([0.5, 0.6, 0.9], "naive", strategy="mas")]
    assert naive_label(given) == "finetune"
    assert set(comparison_table(given).against) == {"finetune", "naive"}
    cells = cells_of(given, "finetune")
    assert cells["naive"]["ACC-naive"] != "–"
    assert "ACC-naive" not in cells["finetune"]


def test_the_best_has_all_seeds():
    given = [*make_records([0.8] * 5, "mas"), *make_records([0.9] * 5, "ewc", diverged={1, 2, 3, 4})]
    assert best_label(given) == "mas"
    cells = cells_of(given)
    assert (cells["mas"]["seeds"], cells["ewc"]["seeds"], cells["ewc"]["diverged"]) == ("5", "1", "4 of 5")


def test_the_best_is_no_ceiling():
    given = [*make_records([0.4, 0.5]), *make_records([0.6, 0.7], "mas"), *make_records([0.8, 0.9], "joint")]
    assert best_label(given) == "mas"
    assert best_label(make_records([0.4], diverged={0})) is None
    assert set(comparison_table(given).against) == {"naive", "mas"}


def test_intransigence_is_against_the_ceiling_of_the_same_seed():
    naive = make_records([0.4, 0.6])
    joint = [
        make_record("joint", seed, accuracy=[[None, None], [final / 2, 0.75]]) for seed, final in enumerate((0.8, 1.0))
    ]
    table = scores_table([*naive, *joint])["intransigence"]
    names = [r.strategy for r in (*naive, *joint)]
    assert reference_of(names) == "joint"
    assert table["naive"].tolist() == pytest.approx([(0.4 - 0.4 + 0.75 - 0.75) / 2, (0.5 - 0.6) / 2])
    cumulative = make_records([0.7, 0.9], "cumulative")
    assert reference_of([*names, "cumulative", "cumulative"]) == "cumulative"
    table = scores_table([*naive, *joint, *cumulative])["intransigence"]
    assert table["naive"].tolist() == pytest.approx([0.3 / 2, 0.3 / 2])
    assert np.isnan(scores_table(naive)["intransigence"]).all()
    assert reference_of([*names, "cumulative"]) == "joint"  # which has more seeds


def test_what_is_rounded_to_zero_has_no_sign():
    assert percent(-0.0004) == "0.0"
    assert percent(-0.0004, -0.0004, 0.0004) == "0.0 [0.0, 0.0]"
    assert percent(-0.0006, -0.01, -0.0004) == "-0.1 [-1.0, 0.0]"
    assert number(-0.0) == "0"
    assert number(-1e-9, -1.5, -0.0) == "-1e-09 [-1.5, 0]"
    assert percent(np.nan) == "–"


# What a run writes.


def test_results_csv_has_a_row_per_accuracy(finished):
    folder, outcome = finished
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["label", "strategy", "seed", "trained_on", "tested_on", "accuracy"]
    # per seed: three strategies with 2 experiences and the untrained network, joint with one row less
    assert len(rows) == 2 * (3 * 6 + 4)
    records = {(r.label, str(r.seed)): r.outcome for r in outcome.results.records}
    for row in rows:
        own = records[row["label"], row["seed"]]
        t, i = int(row["trained_on"]), int(row["tested_on"])
        source = own.untrained if t == -1 else own.accuracy[t]
        assert float(row["accuracy"]) == source[i]
        assert 0 <= float(row["accuracy"]) <= 1
    assert {r["trained_on"] for r in rows if r["label"] == "joint"} == {"-1", "1"}


def test_summary_csv(finished):
    summary = pd.read_csv(finished[0] / "summary.csv")
    assert list(summary) == ["strategy", "score", "mean", "ci_low", "ci_high", "n"]
    assert list(summary.strategy.unique()) == ["naive", "joint", "mas", "ewc"]
    joint = summary[summary.strategy == "joint"].set_index("score")
    assert joint.loc["ACC", "n"] == 2
    assert joint.loc["forgetting", "n"] == 0
    assert np.isnan(joint.loc["forgetting", "mean"])


def test_figures_and_a_page_that_needs_nothing_else(finished):
    folder = finished[0]
    assert sorted(p.name for p in (folder / "figures").iterdir()) == [
        "accuracy_over_stream.png",
        *(f"matrix_{name}.png" for name in ("ewc", "joint", "mas", "naive")),
    ]
    text = (folder / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 5
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text


def test_the_report_is_made_anew_from_the_cells_alone(config, finished):
    folder = finished[0]
    made = [*folder.glob("*.csv"), folder / "report.html", *(folder / "figures").iterdir()]
    before = {path: path.read_bytes() for path in made}
    assert len(before) == 4 + 1 + 5
    for path in made:
        path.unlink()
    stale = ["figures/matrix_old.png", "traces.csv", "../outside.csv"]
    own = [folder / "notes.csv", folder / "figures" / "mine.png", folder.parent / "outside.csv"]
    for path in [*(folder / name for name in stale), *own]:
        path.write_text("x")
    listed = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps([*listed, *stale]))
    write_report(Store(folder), config, read_results(config, Store(folder)))
    assert {path: path.read_bytes() for path in made} == before
    assert not (folder / "figures" / "matrix_old.png").exists()
    assert not (folder / "traces.csv").exists()
    assert all(path.exists() for path in own)  # no report made them, or they lie elsewhere
    for path in own:
        path.unlink()


def test_no_temporary_files_stay(finished):
    assert not list(finished[0].rglob(".*"))


def test_figures_of_one_seed_and_many_experiences():
    size = 14
    record = make_record(accuracy=np.eye(size).tolist(), untrained=[0.1] * size)
    config = small_config("naive")
    pictures = figures(config, tables(config, Results([record])))
    assert set(pictures) == {"accuracy_over_stream", "matrix_naive"}
    assert all(png(picture).startswith(b"\x89PNG") for picture in pictures.values())


# One seed has no interval and no test.


@pytest.mark.parametrize("seeds", [1, 2, 4, 5])
def test_what_is_said_of_intervals_depends_on_the_seeds(seeds):
    config = small_config("naive", "mas", seeds=seeds)
    draw = np.random.default_rng(0)
    given = [*make_records(draw.random(seeds)), *make_records(draw.random(seeds), "mas")]
    made = tables(config, Results(given))
    introduction, title = page(config, made).introduction, headline(config, made).title
    if seeds == 1:
        assert introduction.startswith("Percent accuracy; one seed: no interval, no test.")
        assert title == "percent, one seed: no interval, no test"
        assert "interval over seeds" not in introduction + title
    else:
        assert f"mean over {seeds} seeds with the 95 % interval" in introduction
        assert title == "percent, mean [95 % interval over seeds], * p < 0.05 (paired, Holm)"
    assert ("fewer than five seeds" in introduction) == (1 < seeds < 5)
    stream = figures(config, made)["accuracy_over_stream"].axes[0].get_title()
    assert stream == "Accuracy over the stream" + (", mean and 95 % interval over seeds" if seeds > 1 else "")


# How values were chosen.


def selection(rows):
    columns = ["strategy", "value", "seed", "experience", "ACC", "seconds", "chosen"]
    return pd.DataFrame(rows, columns=columns).astype({"experience": "Int64"})


def remark(*tried):
    rows = [("mas", value, 7, None, acc, 1.0, chosen) for value, acc, chosen in tried]
    shown = chosen_rows(selection(rows))
    (row,) = shown[shown.chosen].remark
    return row


def test_remarks_are_by_value():
    assert remark(("lam=1", 0.9, True), ("lam=100", 0.5, False), ("lam=0.1", 0.4, False)) == ""
    assert remark(("lam=10", 0.1, False), ("lam=100", 0.9, True)).startswith("lam at an end of what was tried")
    assert remark(("norm=l2", 0.1, False), ("norm=squared_l2", 0.9, True)) == ""
    two = remark(("lam=1,factor=0.1", 0.9, True), ("lam=1,factor=0.5", 0.5, False), ("lam=2,factor=0", 0.2, False))
    assert two == "lam at an end of what was tried: better values may lie beyond"
    assert remark(("lam=1", 0.5, False), ("lam=2", 0.9, True), ("lam=3", 0.9, False)) == "2 did as well"


def test_remarks_of_values_that_are_lists_or_maps():
    assert remark(("model.hidden=[8, 8]", 0.9, True), ("model.hidden=[16]", 0.5, False)) == ""
    both = remark(
        ("lam=1.0,model.hidden=[8, 8]", 0.5, False),
        ("lam=2.0,model.hidden=[8, 8]", 0.9, True),
        ("lam=1.0,model.hidden=[16]", 0.1, False),
        ("lam=2.0,model.hidden=[16]", 0.2, False),
    )
    assert both == "lam at an end of what was tried: better values may lie beyond"
    maps = remark(('loss={"name": "a", "p": 1}', 0.9, True), ('loss={"name": "b"}', 0.5, False))
    assert maps == ""


def test_a_value_that_diverged_with_a_seed_has_no_mean():
    rows = [("mas", "lam=1", 7, None, np.nan, 1.0, False), ("mas", "lam=1", 8, None, 0.6, 1.0, False)]
    shown = chosen_rows(selection(rows))
    assert len(shown) == 1
    assert np.isnan(shown.ACC[0])
    assert percent(shown.ACC[0]) == "–"


def test_labels_of_the_tables_are_those_of_the_plan(config, finished):
    assert list(dict.fromkeys(r.label for r in finished[1].results.records)) == Plan(config).labels
