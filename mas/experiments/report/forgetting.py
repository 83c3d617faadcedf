"""Who forgets what: the tables, figures and page of ``experiment: forgetting``."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from mas.experiments.errors import UserError
from mas.experiments.probed import probes_table, trace_table
from mas.experiments.report.drawing import blank, draw_stream_traces, png
from mas.experiments.report.pages import as_text, few_seeds, percent, render, write_files
from mas.experiments.results import Results
from mas.experiments.selection import selection_table
from mas.experiments.statistics import mean_and_interval
from mas.experiments.store import Store
from mas.experiments.summary import (
    BASELINE,
    Record,
    as_matrix,
    best_label,
    comparison_table,
    naive_label,
    reference_of,
    results_table,
    summary_table,
)

Row = tuple[str, dict[str, str]]  # a strategy's label, and text by score
_INTERVAL = ["difference", "ci_low", "ci_high"]

# score -> heading, in the order of the table; the first four are what a terminal has room for
HEADINGS = {
    "ACC": "ACC",
    "forgetting": "forgetting",
    f"ACC-{BASELINE}": f"ACC − {BASELINE}",
    f"forgetting-{BASELINE}": f"forgetting − {BASELINE}",
    "ACC-best": "ACC − best",
    "BWT": "BWT",
    "FWT": "FWT",
    "learning": "learning acc.",
    "intransigence": "intransigence",
    "seconds": "seconds",
    "seeds": "seeds",
}


def write_forgetting_report(store: Store, config: dict[str, Any], results: Results) -> list[Row]:
    """Make every table, figure and the page anew from the cells; give the rows of `table_rows`.

    Raises:
        UserError: there is no finished cell.
    """
    records = results.records
    if not records:
        raise UserError(f"{store.folder}: holds no finished cell; run it first with: mas run")
    tables = {
        "results": results_table(records),
        "summary": summary_table(records),
        "comparisons": comparison_table(records),
        "selection": selection_table(results.tries, results.chosen, records),
    }
    figures = draw_figures(records)
    if any(r["probes"] for r in records):
        tables |= {"probes": probes_table(records), "traces": trace_table(records)}
        figures |= draw_stream_traces(tables["traces"])
    write_files(store, tables, figures)
    rows = table_rows(tables["summary"], tables["comparisons"], naive_label(records))
    store.write("report.html", _page(store.folder.name, config, records, rows, tables["selection"], figures))
    return rows


def table_rows(summary: pd.DataFrame, comparisons: pd.DataFrame, naive: str | None = BASELINE) -> list[Row]:
    """Give the table that people read: per strategy, every score in percent with its interval.

    A score that was not measured is "–"; "seeds" says how many enter the means, "diverged" how many
    do not, or is empty. A difference has a star where it is significant: p below 0.05 after Holm's
    adjustment.
    """
    rows: list[Row] = []
    for label, own in summary.groupby("strategy", sort=False):
        scores = own.set_index("score")
        shares = [score for score in HEADINGS if score in scores.index and score != "seconds"]
        cells = {score: percent(*scores.loc[score, ["mean", "ci_low", "ci_high"]]) for score in shares}
        cells["seconds"] = f"{scores.loc['seconds', 'mean']:.1f}"
        cells |= _differences(comparisons[comparisons.strategy == label], naive)
        cells["seeds"] = str(int(scores.loc["ACC", "n"])) if "ACC" in scores.index else "0"
        share, seeds = scores.loc["diverged", "mean"], scores.loc["diverged", "n"]
        cells["diverged"] = f"{round(share * seeds)} of {seeds}" if share else ""
        rows.append((str(label), cells))
    return rows


def shown(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Give headings and rows of what a terminal has room for."""
    scores = [score for score in list(HEADINGS)[:4] if any(score in cells for _, cells in rows)]
    if len({cells["seeds"] for _, cells in rows}) > 1:
        scores.append("seeds")
    if any(cells["diverged"] for _, cells in rows):
        scores.append("diverged")
    headings = ["strategy", *(HEADINGS.get(score, score) for score in scores)]
    return headings, [[label, *(cells.get(score, "–") for score in scores)] for label, cells in rows]


def draw_figures(records: Sequence[Record]) -> dict[str, bytes]:
    """Draw the accuracy over the stream, and the accuracy matrix of each strategy, as PNG."""
    finished = [r for r in records if r["status"] == "finished"]
    labels = list(dict.fromkeys(r["label"] for r in finished))
    figures = {"accuracy_over_stream": _over_stream(finished, labels)} if finished else {}
    for label in labels:
        matrices = np.stack([_with_untrained(r) for r in finished if r["label"] == label])
        figures[f"matrix_{label}"] = _matrix(label, matrices)
    return {name: png(figure) for name, figure in figures.items()}


def _differences(own: pd.DataFrame, naive: str | None) -> dict[str, str]:
    cells = {}
    for other, score, *interval, p in own[["against", "score", *_INTERVAL, "p_holm"]].itertuples(index=False):
        cells[f"{score}-{BASELINE if other == naive else 'best'}"] = percent(*interval) + ("*" if p < 0.05 else "")
    return cells


def _with_untrained(record: Record) -> np.ndarray:
    return np.vstack([record["untrained"], as_matrix(record)])  # (T + 1, T)


def _over_stream(records: Sequence[Record], labels: Sequence[str]) -> Figure:
    """Draw mean accuracy on the experiences seen so far, after each; band: 95 % over seeds."""
    figure, axes = blank(7.6, 4.0)
    for i, label in enumerate(labels):
        matrices = [as_matrix(r) for r in records if r["label"] == label]
        size = len(matrices[0])
        points = [mean_and_interval([m[t, : t + 1].mean() for m in matrices]) for t in range(size)]
        mean, low, high = (100 * np.array(column) for column in list(zip(*points, strict=True))[:3])
        colour = mpl.colormaps["tab10"](i % 10)
        if np.isfinite(mean).sum() == 1:  # joint training: one row, drawn as a level
            axes.axhline(mean[-1], color=colour, linestyle="--", label=label)
            continue
        axes.plot(range(1, size + 1), mean, marker="o", color=colour, label=label)
        axes.fill_between(range(1, size + 1), low, high.clip(max=100), color=colour, alpha=0.15, linewidth=0)
    several = len({r["seed"] for r in records}) > 1
    axes.set(
        xlabel="experiences trained",
        ylabel="accuracy on those seen so far, %",
        title="Accuracy over the stream" + (", mean and 95 % interval over seeds" if several else ""),
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _matrix(label: str, matrices: np.ndarray) -> Figure:
    """Draw the mean over seeds of R, with the untrained network as the first row."""
    mean = 100 * matrices.mean(0)  # (T + 1, T)
    rows, columns = mean.shape
    figure, axes = blank(1.6 + 0.7 * columns, 1.2 + 0.55 * rows)
    colours = mpl.colormaps["viridis"].with_extremes(bad="0.92")
    axes.imshow(mean, vmin=0, vmax=100, cmap=colours, aspect="auto")
    if columns <= 12:
        for t, i in np.argwhere(np.isfinite(mean)):
            axes.text(
                i, t, f"{mean[t, i]:.0f}", ha="center", va="center", color="white" if mean[t, i] < 60 else "black"
            )
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows), ["untrained", *map(str, range(rows - 1))])
    axes.set(xlabel="tested on experience", ylabel="trained on", title=f"{label}: accuracy, %")
    return figure


def _page(
    name: str,
    config: dict[str, Any],
    records: Sequence[Record],
    rows: Sequence[Row],
    selection: pd.DataFrame,
    figures: dict[str, bytes],
) -> str:
    return render(
        "forgetting.html.jinja",
        name=name,
        headings={s: h for s, h in HEADINGS.items() if any(s in cells for _, cells in rows)},
        rows=rows,
        seeds=len(seeds := {r["seed"] for r in records}),
        few_seeds=few_seeds(len(seeds)),
        best=best_label(records),
        reference=reference_of(records),
        diverged=[r for r in records if r["status"] == "diverged"],
        any_diverged=any(cells["diverged"] for _, cells in rows),
        selection=tried_rows(selection),
        tuned=_tuned(selection),
        figures={key: as_text(picture) for key, picture in figures.items()},
        config=yaml.safe_dump(config, sort_keys=False),
    )


def tried_rows(selection: pd.DataFrame) -> list[dict[str, Any]]:
    """Give a row per value of a grid: its mean ACC, what it cost, whether it was chosen, and a remark.

    The remark says where a number that was chosen is the least or the greatest tried, and where
    others did as well.
    """
    rows = []
    for label, own in selection[selection["experience"].isna()].groupby("strategy", sort=False):
        means = own.groupby("value", sort=False)["ACC"].mean()
        means[own[own["ACC"].isna()]["value"].unique()] = np.nan  # diverged with a seed
        for value, acc in means.items():
            its = own[own["value"] == value]
            chosen = bool(its["chosen"].all())
            row = {"strategy": label, "value": value, "ACC": percent(acc, np.nan, np.nan), "chosen": chosen}
            remark = _remark(str(value), [str(v) for v in means.index], (means == acc).sum()) if chosen else ""
            rows.append(row | {"seconds": f"{its['seconds'].sum():.0f}", "remark": remark})
    return rows


def _remark(chosen: str, tried: Sequence[str], as_good: int) -> str:
    parts = [[part.partition("=") for part in value.split(",")] for value in (chosen, *tried)]
    ends = []
    for i, (name, _, own) in enumerate(parts[0]):
        if _number(own) is not None:
            others = {_number(value[i][2]) for value in parts[1:]}
            if len(others) > 1 and _number(own) in (min(others), max(others)):  # type: ignore[type-var]
                ends.append(f"{name} at an end of what was tried: better values may lie beyond")
    return "; ".join([*ends, *([f"{as_good} did as well"] if as_good > 1 else [])])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _tuned(selection: pd.DataFrame) -> list[dict[str, Any]]:
    """Give a row per (strategy, experience) of what was chosen continually: the value for each seed, and the cost."""
    continual = selection[selection["experience"].notna()]
    return [
        {
            "strategy": label,
            "experience": experience,
            "values": ", ".join(
                f"{seed}: {float(value.partition('=')[2]):.3g}"
                for seed, value in own[own["chosen"]][["seed", "value"]].itertuples(index=False)
            ),
            "tries": f"{len(own) / own['seed'].nunique():.1f}",
            "seconds": f"{own['seconds'].sum():.0f}",
        }
        for (label, experience), own in continual.groupby(["strategy", "experience"], sort=False)
    ]
