"""The pages of results say what is in their tables, and these are what the cells gave."""

import csv
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from scipy.stats import ttest_rel

from mas.experiments.kinds.forgetting.tables import SELECTION_COLUMNS, chosen_rows
from mas.experiments.read_config import load_config
from tools.results import critical
from tools.results.page import final_acc, page

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {"results": page, "critical_periods": critical.page}
KEPT, PROBED = (sorted(path.parent for path in (DOCS / name).glob("*/results.csv")) for name in PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_made_of_the_tables(name):
    assert (DOCS / f"{name}.md").read_text() == PAGES[name](DOCS / name)


@pytest.mark.parametrize(("name", "kept"), zip(PAGES, (KEPT, PROBED), strict=True))
def test_every_table_is_on_the_page(name, kept):
    listed = [run["name"] for run in yaml.safe_load((DOCS / name / "index.yaml").read_text())]
    assert {folder.name for folder in kept} <= set(listed)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("folder", PROBED, ids=lambda folder: folder.name)
def test_curves_are_those_of_the_raw_accuracies(folder):
    if not (folder / "curves.csv").is_file():
        pytest.skip("holds no curves")
    results = pd.read_csv(folder / "results.csv").set_index(["label", "seed"])
    final = results[results["trained_on"] == 0]["accuracy"]
    for row in pd.read_csv(folder / "curves.csv").itertuples():
        assert row.accuracy == pytest.approx(final[row.run].mean(), abs=1e-12)
        if row.run != row.reference:
            assert row.loss == pytest.approx((final[row.reference] - final[row.run]).mean(), abs=1e-12)


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_means_are_those_of_the_raw_accuracies(folder):
    results, summary = pd.read_csv(folder / "results.csv"), pd.read_csv(folder / "summary.csv")
    acc = final_acc(results)["mean"]
    told = summary[summary.score == "ACC"].set_index("strategy")["mean"]
    for label, mean in acc.items():
        assert mean == pytest.approx(100 * told[label], abs=1e-9)
    assert not summary[summary.score == "diverged"]["mean"].any()


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_config_can_still_be_read_and_the_chosen_values_did_best(folder):
    config = load_config(folder / "config.yaml", try_data=False)
    tries = pd.read_csv(folder / "selection.csv")
    assert set(tries["seed"]).isdisjoint(config.seed_list())
    for _, own in tries.groupby("strategy"):
        means = own.groupby("value")["ACC"].mean()
        (chosen,) = own[own["chosen"]]["value"].unique()
        assert means[chosen] == means.max()


@pytest.mark.parametrize("chosen", ["[16]", "[32, 16]"])
def test_values_that_are_lists_can_be_chosen_from(chosen):
    """Commas stand between options, and within a list too."""
    tries = [
        ("mas", f"model.hidden={hidden},training.lr={lr}", 0, None, "finished", float(hidden == chosen) - lr, 1.0)
        for hidden in ("[16]", "[32, 16]")
        for lr in (0.001, 0.01, 0.1)
    ]
    table = pd.DataFrame([(*row, row[1] == f"model.hidden={chosen},training.lr=0.001") for row in tries])
    rows = chosen_rows(table.set_axis(SELECTION_COLUMNS, axis=1))
    (remark,) = rows[rows["chosen"]]["remark"]
    assert remark == "training.lr at an end of what was tried: better values may lie beyond"


DIGITS = DOCS / "critical_periods/critical_period_digits"
AGAIN = DOCS / "critical_periods/avx512"  # the same runs with other vector instructions


def remarks_of(name):
    runs = yaml.safe_load((DOCS / "critical_periods/index.yaml").read_text())
    return [" ".join(remark.split()) for run in runs if run["name"] == name for remark in run["remarks"]]


def shares_by_hand(folder, label, epoch):
    """Read the layers' Fisher traces of a run at an epoch; return their shares."""
    with (folder / "traces.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["probe"], row["data"]) == ("fisher_trace", "train")]
    here = [row for row in rows if (row["label"], row["epoch"]) == (label, str(epoch)) and row["part"] != "all layers"]
    total = sum(float(row["mean"]) for row in here)
    return {row["part"]: float(row["mean"]) / total for row in here}


def jensen_shannon(p, q):
    middle = {layer: (p[layer] + q[layer]) / 2 for layer in p}
    return sum(x[layer] * math.log(x[layer] / middle[layer]) for x in (p, q) for layer in p) / 2


def as_told(number):
    """Write a small number as the page does: 3.9e-5."""
    return f"{number:.1e}".replace("e-0", "e-")


@pytest.mark.parametrize(("folder", "at_end"), [(DIGITS, "3.9e-5"), (AGAIN / DIGITS.name, "3.1e-5")])
def test_the_impaired_networks_layers_end_with_the_clear_ones_shares(folder, at_end):
    impaired, clear = ("blur_0-40_of_100", "clear_100")
    ends = [shares_by_hand(folder, label, 100) for label in (impaired, clear)]
    assert len(ends[0]) == 7
    found = critical.final_share_divergences(pd.read_csv(folder / "traces.csv"), impaired, clear, removal=40)
    expected = jensen_shannon(*ends), jensen_shannon(shares_by_hand(folder, clear, 40), ends[1])
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[0] < found[1]  # nearer to each other than the clear network stays to itself
    assert as_told(found[0]) == at_end
    (remark,) = [remark for remark in remarks_of(DIGITS.name) if "Jensen" in remark]
    assert at_end in remark
    accuracy = pd.read_csv(folder / "results.csv").query("trained_on == 0").pivot_table("accuracy", "seed", "label")
    lost = 100 * (accuracy[clear] - accuracy[impaired]).mean()
    p = ttest_rel(accuracy[clear], accuracy[impaired]).pvalue
    assert f"{lost:.1f} points" in remark
    assert f"p = {p:.2g}" in remark
    if folder == DIGITS:
        assert as_told(found[1]) in remark


def test_the_fisher_trace_is_greatest_in_epoch_4_and_not_at_the_first_look():
    trace = pd.read_csv(DIGITS / "traces.csv").query("probe == 'fisher_trace' and part == 'all layers'")
    clear = trace[(trace["label"] == "clear_100") & (trace["data"] == "train")].set_index("epoch")["mean"]
    assert (clear.index.min(), clear.idxmax()) == (0, 4)
    (remark,) = [remark for remark in remarks_of(DIGITS.name) if "in epoch 4" in remark]
    assert f"in epoch 0 it is {clear[0]:.1f}, in epoch 4 it is {clear[4]:.0f}" in remark


@pytest.mark.parametrize(
    ("name", "differing", "cells", "crossing"),
    [
        ("critical_period_digits", 75, 170, {("window", "blur", 0), ("removal", "label_permutation", 80)}),
        ("critical_period_digits_annealed", 19, 70, set()),
    ],
)
def test_what_other_vector_instructions_change(name, differing, cells, crossing):
    there, again = DOCS / "critical_periods" / name, AGAIN / name
    one, other = (
        {(row["label"], row["seed"], row["trained_on"]): row["accuracy"] for row in csv.DictReader(file.open())}
        for file in (there / "results.csv", again / "results.csv")
    )
    assert one.keys() == other.keys()
    finals = [key for key in one if key[2] == "0"]
    assert (sum(one[key] != other[key] for key in finals), len(finals)) == (differing, cells)
    assert critical.differing_cells(there, again) == (differing, cells)
    tests = [
        pd.read_csv(path / "curves.csv").set_index(["curve", "deficit", "epoch"])["p_holm"] for path in (there, again)
    ]
    assert set(tests[0].index[(tests[0] < 0.05) != (tests[1] < 0.05)]) == crossing
    marked = [remark for remark in remarks_of(name) if "not significant" in remark and "**With AVX-512" in remark]
    for at in crossing:  # each is marked where it is told
        told = [f"p = {test[at]:.2g}" for test in tests]
        assert any(all(p in remark for p in told) for remark in marked), at
    assert len(marked) == len(crossing)


def test_the_readme_says_what_other_vector_instructions_change():
    readme = " ".join((DOCS.parent / "README.md").read_text().split())
    tests = [
        pd.read_csv(path / "curves.csv").set_index(["curve", "deficit", "epoch"])
        for path in (DIGITS, AGAIN / DIGITS.name)
    ]
    assert "75 of the 170 cells" in readme
    for at in (("removal", "blur", 80), ("removal", "label_permutation", 80)):
        for test in tests:
            assert f"p = {test.loc[at, 'p_holm']:.2g}" in readme
