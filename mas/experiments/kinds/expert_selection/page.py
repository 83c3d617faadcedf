"""What people read of the selection of experts."""

import pandas as pd

from mas.experiments.kind import Tables
from mas.experiments.kinds.expert_selection.config import ExpertSelection
from mas.experiments.report.sections import Headline, Page, Section, Table
from mas.experiments.report.text import number, p_value, percent

PAPER = (
    "Achille et al. 2019 report for iNaturalist and CUB-200: asymmetric distance +10 %, chance +59.5 %. The data, the "
    "networks and the number of experts are others there, so that the numbers cannot be compared one to one. The "
    "excess here is a mean over tasks of each task's ratio."
)


def page(config: ExpertSelection, tables: Tables) -> Page:
    """Return the page of a run."""
    introduction = (
        "An expert is the probe network after training on one task. Which one is the best start for a new task? "
        f"Experts are adapted to a new task as follows: {_adaptation(config)}. Errors are on test images; an expert is "
        "not counted on the task that it was trained on."
    )
    return Page("the selection of experts", introduction, _sections(config, tables))


def headline(config: ExpertSelection, tables: Tables) -> Headline:
    """Return what a terminal shows of a run."""
    notes = [_references(tables["selection"])] if len(tables["selection"]) else []
    return Headline("errors and excess over the best expert, percent", _selection(tables["selection"]), notes)


def _sections(config: ExpertSelection, tables: Tables) -> list[Section]:
    selection, choices = tables["selection"], tables["choices"]
    if selection.empty:
        return [Section("Selection", "Nothing to show until tasks are embedded and two experts are measured.")]
    text = (
        f"{_references(selection)} Excess is the selected expert's error over the best one's, minus 1. "
        "“Found” is the share of tasks whose best expert is selected, ρ Spearman's correlation of distance and error "
        "over the experts of a task. Means over tasks with 95 % intervals (bootstrap over tasks); p of the paired "
        "t-test against chance over tasks, adjusted by Holm's method."
    )
    drawn = choices[choices["distance"] == config.distance]
    return [
        Section("Selection", text, _selection(selection), ["experts"], PAPER),
        Section("Tasks", f"Mean over seeds; distance: {config.distance}.", _tasks(drawn)),
        Section("Errors", "Grey: the task that the expert was trained on.", figures=["errors"]),
    ]


def _adaptation(config: ExpertSelection) -> str:
    transfer = config.transfer
    images = "all training images" if transfer.per_class is None else f"{transfer.per_class} images of each class"
    if transfer.fine_tune is None:
        return f"the features are frozen, and a head is fitted to {images}"
    return f"all weights are trained for {transfer.fine_tune.steps} steps on {images}"


def _references(selection: pd.DataFrame) -> str:
    """Return the errors to compare with, which are the same for every distance."""
    own = selection.iloc[0]
    chance = percent(own["chance_excess"], own["chance_excess_ci_low"], own["chance_excess_ci_high"])
    generic = percent(own["generic_excess"], own["generic_excess_ci_low"], own["generic_excess_ci_high"])
    return (
        f"Best expert (brute force): error {percent(own['best'])} %. Chance: {percent(own['chance'])} %, "
        f"excess {chance} %. The probe network itself: {percent(own['generic'])} %, excess {generic} %."
    )


def _selection(selection: pd.DataFrame) -> Table:
    headings = ["distance", "error", "excess", "found", "ρ", "p (Holm)"]
    rows = [
        [
            *(r.distance, percent(r.error), percent(r.excess, r.excess_ci_low, r.excess_ci_high), percent(r.found)),
            number(r.rank_correlation, r.rank_correlation_ci_low, r.rank_correlation_ci_high, ".2f"),
            p_value(r.p_holm),
        ]
        for r in selection.itertuples()
    ]
    return Table(headings, rows)


def _tasks(choices: pd.DataFrame) -> Table:
    headings = ["task", "selected", "error", "best expert", "error of the best", "chance", "probe network"]
    rows = []
    for task, own in choices.groupby("task", sort=False):
        numbers = [percent(own[column].mean()) for column in ("error", "best", "chance", "generic")]
        error, best, chance, generic = numbers
        rows.append([str(task), _names(own["expert"]), error, _names(own["best_expert"]), best, chance, generic])
    return Table(headings, rows)


def _names(experts: pd.Series) -> str:
    """Return the names of experts, each once, in the order of the seeds."""
    return ", ".join(dict.fromkeys(experts))
