"""What people read of critical periods."""

import pandas as pd

from mas.experiments.kind import Tables
from mas.experiments.kinds.critical_period.config import CriticalPeriod
from mas.experiments.report.sections import Headline, Page, Section, Table
from mas.experiments.report.text import (
    diverged_text,
    few_seeds,
    intervals,
    number,
    of_fewer,
    p_value,
    paired_introduction,
    percent,
    with_diverged,
)
from mas.experiments.traces import TOTAL, fisher_traces

CONSTANT = "The learning rate is constant: the lr-matched control would be the clear run itself, and is not needed."


def page(config: CriticalPeriod, tables: Tables) -> Page:
    """Return the page of a run."""
    seeds = len(config.seed_list())
    loss = " Loss is how far accuracy is below the reference's."
    introduction = paired_introduction(seeds) + loss + few_seeds(seeds)
    sections = [*_removal(config, tables), *_window(config, tables), *_trace(config, tables)]
    return Page("critical periods", introduction, sections)


def headline(config: CriticalPeriod, tables: Tables) -> Headline:
    """Return what a terminal shows of a run."""
    notes = _control_notes(tables["control"]) if config.needs_control else [CONSTANT] if config.removal else []
    interval_note = intervals(len(config.seed_list()), "mean [95 % interval over seeds]")
    return Headline(f"percent, {interval_note}", _curve_table(tables["curves"]), notes)


def _removal(config: CriticalPeriod, tables: Tables) -> list[Section]:
    if not config.removal:
        return []
    curves = tables["curves"]
    own = curves[curves["curve"].isin(["removal", "control"])]
    text = (
        f"The deficit lasts until the epoch of removal; then {config.training.epochs} clear epochs follow. "
        "Reference: no deficit."
    )
    removal = Section("Removal", text + diverged_text(own), _curve_table(own), ["removal"])
    if config.needs_control:
        return [removal, _control(config, tables["control"])]
    return [removal, Section("The learning rate's part", CONSTANT)]


def _control(config: CriticalPeriod, control: pd.DataFrame) -> Section:
    text = (
        "The lr-matched control is a fresh network without deficit, trained with the learning rates that the impaired "
        "one sees after removal. What it loses is due to the learning rate. The share means little where the loss is "
        "not clearly above 0."
    )
    headings = ["deficit", "epoch of removal", "loss", "control's loss", "explained by it", "left", "p (Holm)"]
    rows = [
        [
            *(r.deficit, str(r.epoch), percent(r.loss), percent(r.control_loss), percent(r.explained)),
            percent(r.left, r.left_ci_low, r.left_ci_high) + of_fewer(r.n, len(config.seed_list())),
            p_value(r.p_holm),
        ]
        for r in control.itertuples()
    ]
    return Section("The learning rate's part", text, Table(headings, rows))


def _window(config: CriticalPeriod, tables: Tables) -> list[Section]:
    if not config.window:
        return []
    own = tables["curves"][tables["curves"]["curve"] == "window"]
    text = (
        f"The deficit lasts {config.window.length} epochs; then {config.training.epochs} clear epochs follow. "
        "Reference: as many epochs without deficit."
    )
    if config.training.is_annealed:
        text += " The learning rate is annealed: a later window also meets smaller steps. Removal has a control."
    return [Section("Window", text + diverged_text(own), _curve_table(own), ["window"])]


def _trace(config: CriticalPeriod, tables: Tables) -> list[Section]:
    if config.trace is None:
        return []
    traces = tables["traces"]
    names = [f"trace_{probe}" for probe in dict.fromkeys(traces["probe"])]
    headings = ["run", "data", "peak", "at epoch", "at the end", "end / peak"]
    peaks = Table(headings, _peaks(fisher_traces(traces, config.probes)))
    over_epochs = Section("Over the epochs", "Fisher trace, all layers, mean over seeds.", peaks, names)
    text = (
        "Each layer's share of the Fisher trace: where the information is. The shift is the Jensen–Shannon divergence "
        f"of the shares on clear data at epoch {config.trace.end} and at the end, in nats: near 0 is fixed, "
        "log 2 = 0.69 is all new."
    )
    shifts = [[r.label, r.data, number(r.shift, r.ci_low, r.ci_high)] for r in tables["shares"].itertuples()]
    between = Section("Between the layers", text, Table(["run", "data", "shift"], shifts), ["shares"])
    return [over_epochs, between]


def _peaks(fisher: pd.DataFrame) -> list[list[str]]:
    rows = []
    totals = fisher[fisher["part"] == TOTAL]
    for (label, view), own in totals.groupby(["label", "data"], sort=False):
        peak, last = own.loc[own["mean"].idxmax()], own.iloc[-1]
        ratio = last["mean"] / peak["mean"]
        rows.append([label, view, number(peak["mean"]), str(peak["epoch"]), number(last["mean"]), number(ratio)])
    return rows


def _curve_table(curves: pd.DataFrame) -> Table:
    headings = ["curve", "deficit", "epoch", "accuracy", "on training data", "loss", "p (Holm)"]
    rows = [
        [
            *(r.curve, r.deficit or "–", str(r.epoch), percent(r.accuracy, r.ci_low, r.ci_high)),
            percent(r.train_accuracy),
            percent(r.loss, r.loss_ci_low, r.loss_ci_high) + of_fewer(r.loss_n, r.n),
            p_value(r.p_holm),
        ]
        for r in curves.itertuples()
    ]
    return with_diverged(Table(headings, rows), curves)


def _control_notes(control: pd.DataFrame) -> list[str]:
    return [
        f"{r.deficit} removed at {r.epoch}: loses {percent(r.loss)}; the lr-matched control loses "
        f"{percent(r.control_loss)} ({percent(r.explained)} % of it); "
        f"left {percent(r.left, r.left_ci_low, r.left_ci_high)}, p = {p_value(r.p_holm)}"
        for r in control.itertuples()
    ]
