"""The tables, figures and pages of the experiments on critical periods."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import yaml

from mas.experiments.config import ConsolidatedDeficit, CriticalPeriod, Experiment, Forgetting, resolved
from mas.experiments.consolidated_deficit import SCORES, scores_of
from mas.experiments.critical_period import curves, explained, needs_control, share_shifts, traced
from mas.experiments.probed import TOTAL, fisher_traces, probes_table, trace_table
from mas.experiments.report.drawing import (
    as_drawn,
    draw_removal,
    draw_shares,
    draw_strengths,
    draw_traces,
    draw_window,
    png,
)
from mas.experiments.report.forgetting import shown, table_rows
from mas.experiments.report.pages import as_text, few_seeds, intervals, number, percent, render, write_files
from mas.experiments.store import Store
from mas.experiments.summary import results_table
from mas.experiments.training import is_constant

Record = dict[str, Any]
Rows = list[list[str]]

CONSTANT = "The learning rate is constant: the lr-matched control would be the clear run itself, and is not needed."
_SEEDS = (
    "mean over {seeds} seeds with the 95 % interval (expanded percentile bootstrap); differences are paired "
    "by seed, p of the paired t-test, adjusted by Holm's method"
)
_LOSS = " Loss is how far accuracy is below the reference's."


class Section(NamedTuple):
    """A part of a page."""

    title: str
    text: str = ""
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[str] = ()


def write_critical_report(
    store: Store, config: CriticalPeriod, records: Sequence[Record]
) -> tuple[list[str], Rows, list[str]]:
    """Write the files of ``experiment: critical_period``; give headings, rows and notes for the terminal."""
    tables = {
        **_raw_tables(records),
        "curves": curves(config, records),
        "control": explained(config, records),
        "shares": share_shifts(config, records),
    }
    figures = {name: png(figure) for name, figure in _critical_figures(config, tables).items()}
    _write(store, config, records, tables, figures, "critical periods")
    notes = [CONSTANT] if config.removal and not needs_control(config) else _control_notes(tables["control"])
    return *_curve_rows(tables["curves"]), notes


def write_consolidated_report(
    store: Store, config: ConsolidatedDeficit, records: Sequence[Record]
) -> tuple[list[str], Rows, list[str]]:
    """Write the files of ``experiment: consolidated_deficit``; give headings, rows and notes for the terminal."""
    tables = {**_raw_tables(records), "scores": scores_of(config, records)}
    figures = {"strengths": png(draw_strengths(tables["scores"]))}
    _write(store, config, records, tables, figures, "a consolidated deficit")
    return *_score_rows(tables["scores"]), []


def sections_of(config: Experiment, tables: Mapping[str, pd.DataFrame], figures: Collection[str]) -> list[Section]:
    """Give what people read of a run: texts, tables, and which of its figures belong to them."""
    if isinstance(config, CriticalPeriod):
        return [*_curve_sections(config, tables), *_trace_sections(config, tables, figures)]
    if isinstance(config, Forgetting):
        headings, rows = shown(table_rows(tables["summary"], tables["comparisons"]))
        return [Section("Accuracy", "", headings, rows), stream_section(tables["traces"], figures)]
    about = "; ".join(f"{_title(score)}: {meaning}" for score, meaning in SCORES.items())
    text = about + "."
    if len(config.seed_list()) > 1:
        text += " * p < 0.05 against the run of the same length without protection."
    text += _diverged_text(tables["scores"])
    return [Section("Does protection deepen the impairment?", text, *_score_rows(tables["scores"]), ["strengths"])]


def stream_section(traces: pd.DataFrame, figures: Collection[str]) -> Section:
    """Give what the probes saw at the end of each experience of a stream."""
    last = as_drawn(traces).groupby(["probe", "data", "part", "label", "experience"], sort=False).last()["mean"]
    ends = last.unstack("experience")
    headings = ["probe", "part", "data", "strategy", *(f"after {1 + t}" for t in ends.columns)]
    rows = [
        [str(probe), str(part) or "–", str(view), str(label), *map(number, own)]
        for (probe, view, part, label), own in zip(ends.index, ends.to_numpy(), strict=True)
    ]
    names = [name for name in figures if name.startswith("trace_")]
    return Section("What each experience leaves", "Mean over seeds.", headings, rows, names)


def introduction(config: Experiment) -> str:
    """Say what the numbers are."""
    seeds = len(config.seed_list())
    loss = _LOSS if isinstance(config, CriticalPeriod) else ""
    return "Percent; " + intervals(seeds, _SEEDS.format(seeds=seeds)) + "." + loss + few_seeds(seeds)


_CURVE_HEADINGS = ["curve", "deficit", "epoch", "accuracy", "on training data", "loss", "p (Holm)"]
_SCORE_HEADINGS = ["strategy", "λ", "deficit", *(score.replace("_", " ") for score in SCORES)]


def _critical_figures(config: CriticalPeriod, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if config.removal:
        figures["removal"] = draw_removal(tables["curves"])
    if config.window:
        figures["window"] = draw_window(tables["curves"], tables["traces"], config.window.length)
    if config.trace:
        labels, end = [run.label for run in traced(config)], config.trace.end
        figures |= draw_traces(tables["traces"], labels, end)
        if "train" in set(fisher_traces(tables["traces"])["data"]):
            figures["shares"] = draw_shares(tables["traces"], labels, end, "train")
    return figures


def _curve_sections(config: CriticalPeriod, tables: Mapping[str, pd.DataFrame]) -> list[Section]:
    table, made = tables["curves"], []
    if config.removal:
        own = table[table["curve"].isin(["removal", "control"])]
        text = (
            f"The deficit lasts until the epoch of removal; then {config.training.epochs} clear epochs follow. "
            "Reference: no deficit."
        )
        made.append(Section("Removal", text + _diverged_text(own), *_curve_rows(own), ["removal"]))
        made.append(_control_section(config, tables["control"]))
    if config.window:
        own = table[table["curve"] == "window"]
        text = (
            f"The deficit lasts {config.window.length} epochs; then {config.training.epochs} clear epochs follow. "
            "Reference: as many epochs without deficit."
        )
        if not is_constant(config.training.model_dump()):
            text += " The learning rate is annealed: a later window also meets smaller steps. Removal has a control."
        made.append(Section("Window", text + _diverged_text(own), *_curve_rows(own), ["window"]))
    return made


def _control_section(config: CriticalPeriod, control: pd.DataFrame) -> Section:
    if not needs_control(config):
        return Section("The learning rate's part", CONSTANT)
    text = (
        "The lr-matched control is a fresh network without deficit, trained with the learning rates that the impaired "
        "one sees after removal. What it loses, the deficit need not explain. The share says little where the loss is "
        "not clearly above 0."
    )
    headings = ["deficit", "epoch of removal", "loss", "control's loss", "explained by it", "left", "p (Holm)"]
    rows = [
        [
            *(r.deficit, str(r.epoch), percent(r.loss), percent(r.control_loss), percent(r.explained)),
            percent(r.left, r.left_ci_low, r.left_ci_high) + _of_fewer(r.n, len(config.seed_list())),
            _p(r.p_holm),
        ]
        for r in control.itertuples()
    ]
    return Section("The learning rate's part", text, headings, rows)


def _control_notes(control: pd.DataFrame) -> list[str]:
    return [
        f"{r.deficit} removed at {r.epoch}: loses {percent(r.loss)}; the lr-matched control loses "
        f"{percent(r.control_loss)} "
        f"({percent(r.explained)} % of it); left {percent(r.left, r.left_ci_low, r.left_ci_high)}, p = {_p(r.p_holm)}"
        for r in control.itertuples()
    ]


def _trace_sections(
    config: CriticalPeriod, tables: Mapping[str, pd.DataFrame], figures: Collection[str]
) -> list[Section]:
    if config.trace is None:
        return []
    names = [name for name in figures if name.startswith("trace_")]
    headings = ["run", "data", "peak", "at epoch", "at the end", "end / peak"]
    trace = Section(
        "Over the epochs", "Fisher trace, all layers, mean over seeds.", headings, _peaks(tables["traces"]), names
    )
    shifts = [[r.label, r.data, number(r.shift, r.ci_low, r.ci_high)] for r in tables["shares"].itertuples()]
    text = (
        "Each layer's share of the Fisher trace: where the information is. The shift is the Jensen–Shannon divergence "
        f"of the shares on clear data at epoch {config.trace.end} and at the end, in nats: near 0 is fixed, "
        "log 2 = 0.69 is all new."
    )
    return [trace, Section("Between the layers", text, ["run", "data", "shift"], shifts, ["shares"])]


def _peaks(traces: pd.DataFrame) -> Rows:
    totals = fisher_traces(traces[traces["part"] == TOTAL])
    rows = []
    for (label, view), own in totals.groupby(["label", "data"], sort=False):
        peak, last = own.loc[own["mean"].idxmax()], own.iloc[-1]
        ratio = last["mean"] / peak["mean"]
        rows.append([label, view, number(peak["mean"]), str(peak["epoch"]), number(last["mean"]), number(ratio)])
    return rows


def _curve_rows(table: pd.DataFrame) -> tuple[list[str], Rows]:
    rows = [
        [
            *(r.curve, r.deficit or "–", str(r.epoch), percent(r.accuracy, r.ci_low, r.ci_high)),
            percent(r.train_accuracy),
            percent(r.loss, r.loss_ci_low, r.loss_ci_high) + _of_fewer(r.loss_n, r.n),
            _p(r.p_holm),
        ]
        for r in table.itertuples()
    ]
    return _with_diverged(_CURVE_HEADINGS, rows, table)


def _score_rows(scores: pd.DataFrame) -> tuple[list[str], Rows]:
    rows = []
    for (strategy, strength, length), own in scores.groupby(
        ["strategy", "strength", "length"], sort=False, dropna=False
    ):
        cells = []
        for r in own.itertuples():
            text = (percent if _is_share(r.score) else number)(r.mean, r.ci_low, r.ci_high)
            cells.append(text + ("*" if r.p_holm < 0.05 else "") + _of_fewer(r.n, own["n"].max()))
        rows.append([str(strategy), "–" if pd.isna(strength) else f"{strength:g}", str(length), *cells])
    return _with_diverged(_SCORE_HEADINGS, rows, scores[scores["score"] == "accuracy"])


def _with_diverged(headings: list[str], rows: Rows, table: pd.DataFrame) -> tuple[list[str], Rows]:
    """Add how many seeds of each row diverged, where any did."""
    if not table["diverged"].any():
        return headings, rows
    told = [f"{r.diverged} of {r.n + r.diverged}" if r.diverged else "" for r in table.itertuples()]
    return [*headings, "diverged"], [[*row, cell] for row, cell in zip(rows, told, strict=True)]


def _of_fewer(n: int, expected: int) -> str:
    """Say of how many seeds a number is, where it is of some but not all: a run it is held against diverged."""
    return f" ({n} of {expected} seeds)" if 0 < n < expected else ""


def _diverged_text(table: pd.DataFrame) -> str:
    return " Seeds that diverged are in no mean; points that lack some are open." if table["diverged"].any() else ""


def _is_share(score: Any) -> bool:
    return score in ("accuracy", "impaired_accuracy", "forgetting", "intransigence")


def _title(score: str) -> str:
    return score.replace("_", " ")


def _p(value: float) -> str:
    return number(value, form=".2g")


def _raw_tables(records: Sequence[Record]) -> dict[str, pd.DataFrame]:
    cells = [(r["label"], r["seed"], r["status"], r["seconds"]) for r in records]
    return {
        "results": results_table(records),
        "cells": pd.DataFrame(cells, columns=["label", "seed", "status", "seconds"]),
        "probes": probes_table(records),
        "traces": trace_table(records),
    }


def _write(
    store: Store,
    config: Experiment,
    records: Sequence[Record],
    tables: Mapping[str, pd.DataFrame],
    figures: dict[str, bytes],
    subject: str,
) -> None:
    write_files(store, {name: table for name, table in tables.items() if len(table)}, figures)
    for name in (name for name, table in tables.items() if not len(table)):  # it may be there from before
        (store.folder / f"{name}.csv").unlink(missing_ok=True)
    page = render(
        "probed.html.jinja",
        name=store.folder.name,
        subject=subject,
        introduction=introduction(config),
        diverged=[r for r in records if r["status"] == "diverged"],
        sections=sections_of(config, tables, figures),
        figures={key: as_text(picture) for key, picture in figures.items()},
        config=yaml.safe_dump(resolved(config), sort_keys=False),
    )
    store.write("report.html", page)
