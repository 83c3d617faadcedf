"""The pages of results say what is in their tables, and these are what the cells gave."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from mas.experiments.loading import load_config
from tests.results import critical
from tests.results.page import final_acc, page

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
