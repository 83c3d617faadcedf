"""What people read of a consolidated deficit."""

import pandas as pd

from mas.experiments.kind import Tables
from mas.experiments.kinds.consolidated_deficit.config import ConsolidatedDeficit
from mas.experiments.kinds.consolidated_deficit.tables import SCORES, SHARES
from mas.experiments.report.sections import Headline, Page, Section, Table
from mas.experiments.report.text import (
    diverged_text,
    few_seeds,
    intervals,
    number,
    of_fewer,
    paired_introduction,
    percent,
    with_diverged,
)


def page(config: ConsolidatedDeficit, tables: Tables) -> Page:
    """Return the page of a run."""
    seeds = len(config.seed_list())
    about = "; ".join(f"{_title(score)}: {meaning}" for score, meaning in SCORES.items())
    stars = " * p < 0.05 against the run of the same length without protection." if seeds > 1 else ""
    section = Section(
        "Does protection deepen the impairment?",
        about + "." + stars + diverged_text(tables["scores"]),
        _score_table(tables["scores"]),
        ["strengths"],
    )
    return Page("a consolidated deficit", paired_introduction(seeds) + few_seeds(seeds), [section])


def headline(config: ConsolidatedDeficit, tables: Tables) -> Headline:
    """Return what a terminal shows of a run."""
    interval_note = intervals(len(config.seed_list()), "mean [95 % interval over seeds]")
    return Headline(f"accuracies in percent, {interval_note}", _score_table(tables["scores"]))


def _score_table(scores: pd.DataFrame) -> Table:
    headings = ["strategy", "λ", "deficit", *(_title(score) for score in SCORES)]
    rows = []
    variants = scores.groupby(["strategy", "strength", "length"], sort=False, dropna=False)
    for (strategy, strength, length), own in variants:
        strength_text = "–" if pd.isna(strength) else f"{strength:g}"
        rows.append([str(strategy), strength_text, str(length), *_score_cells(own)])
    return with_diverged(Table(headings, rows), scores[scores["score"] == "accuracy"])


def _score_cells(own: pd.DataFrame) -> list[str]:
    cells = []
    for r in own.itertuples():
        shown = percent if r.score in SHARES else number
        star = "*" if r.p_holm < 0.05 else ""
        cells.append(shown(r.mean, r.ci_low, r.ci_high) + star + of_fewer(r.n, own["n"].max()))
    return cells


def _title(score: str) -> str:
    return score.replace("_", " ")
