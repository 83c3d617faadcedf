"""The page of the reproductions says what is in its tables, and these are what the cells gave."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from mas.experiments.loading import load_config
from tests.results.page import final_acc, page

RESULTS = Path(__file__).parent.parent / "docs" / "results"
KEPT = sorted(path.parent for path in RESULTS.glob("*/results.csv"))


def test_the_page_is_made_of_the_tables():
    assert RESULTS.with_suffix(".md").read_text() == page(RESULTS)


def test_every_table_is_on_the_page():
    listed = [run["name"] for run in yaml.safe_load((RESULTS / "index.yaml").read_text())]
    assert {folder.name for folder in KEPT} <= set(listed)
    assert len(set(listed)) == len(listed)


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
