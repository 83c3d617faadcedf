"""What people read of forgetting."""

from collections.abc import Mapping

import pandas as pd

from mas.experiments.kind import Tables
from mas.experiments.kinds.forgetting.config import Forgetting
from mas.experiments.kinds.forgetting.scores import BASELINE, best_of
from mas.experiments.kinds.forgetting.tables import chosen_rows, tuned_rows
from mas.experiments.report.sections import Headline, Page, Section, Table
from mas.experiments.report.text import few_seeds, intervals, number, percent
from mas.experiments.scores import CEILINGS, reference_of
from mas.experiments.traces import as_drawn

Cells = dict[str, str]  # text by score

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
    "diverged": "diverged",
}
_IN_TERMINAL = list(HEADINGS)[:4]


def page(config: Forgetting, tables: Tables) -> Page:
    """Return the page of a run."""
    sections = [
        _scores(config, tables),
        *_selection(tables["selection"]),
        *_accuracy(config, tables),
        *_probes(tables),
    ]
    return Page("who forgets what", _introduction(config, tables), sections)


def headline(config: Forgetting, tables: Tables) -> Headline:
    """Return what a terminal shows of a run."""
    rows = score_cells(tables["summary"], tables["comparisons"], _naive(config))
    scores = [score for score in _IN_TERMINAL if any(score in cells for cells in rows.values())]
    if len({cells["seeds"] for cells in rows.values()}) > 1:
        scores.append("seeds")
    if any(cells["diverged"] for cells in rows.values()):
        scores.append("diverged")
    interval_note = intervals(len(config.seed_list()), "mean [95 % interval over seeds], * p < 0.05 (paired, Holm)")
    return Headline(f"percent, {interval_note}", _table(rows, scores))


def score_cells(summary: pd.DataFrame, comparisons: pd.DataFrame, naive: str | None = BASELINE) -> dict[str, Cells]:
    """Return the text of every score by strategy: percent with its interval.

    A score that was not measured is "–"; "seeds" says how many enter the means, "diverged" how many
    do not, or is empty. A difference has a star where it is significant: p below 0.05 after Holm's
    adjustment.
    """
    found: dict[str, Cells] = {}
    for label, own in summary.groupby("strategy", sort=False):
        scores = own.set_index("score")
        shares = [score for score in HEADINGS if score in scores.index and score not in ("seconds", "diverged")]
        cells = {score: percent(*scores.loc[score, ["mean", "ci_low", "ci_high"]]) for score in shares}
        cells["seconds"] = f"{scores.loc['seconds', 'mean']:.1f}"
        cells |= _differences(comparisons[comparisons.strategy == label], naive)
        cells["seeds"] = str(int(scores.loc["ACC", "n"])) if "ACC" in scores.index else "0"
        share, seeds = scores.loc["diverged", "mean"], int(scores.loc["diverged", "n"])
        cells["diverged"] = f"{round(share * seeds)} of {seeds}" if share else ""
        found[str(label)] = cells
    return found


def _differences(own: pd.DataFrame, naive: str | None) -> Cells:
    cells = {}
    for r in own.itertuples():
        other = BASELINE if r.against == naive else "best"
        star = "*" if r.p_holm < 0.05 else ""
        cells[f"{r.score}-{other}"] = percent(r.difference, r.ci_low, r.ci_high) + star
    return cells


def _table(rows: Mapping[str, Cells], scores: list[str]) -> Table:
    lines = [[label, *(cells.get(score, "–") for score in scores)] for label, cells in rows.items()]
    return Table(["strategy", *(HEADINGS[score] for score in scores)], lines)


def _introduction(config: Forgetting, tables: Tables) -> str:
    seeds = len(config.seed_list())
    about = (
        f"mean over {seeds} seeds with the 95 % interval (expanded percentile bootstrap over seeds).{few_seeds(seeds)} "
        "Differences are paired by seed; * marks those with p < 0.05 in a paired t-test, adjusted by Holm's method for "
        "the number of strategies"
    )
    text = f"Percent accuracy; {intervals(seeds, about)}."
    best = _best(config, tables["summary"])
    if best is None:
        return text
    return text + (
        f" The best is {best}: the highest mean ACC of all that learn from the stream; found by the same seeds, "
        "it is flattered a little."
    )


def _scores(config: Forgetting, tables: Tables) -> Section:
    rows = score_cells(tables["summary"], tables["comparisons"], _naive(config))
    measured = [score for score in HEADINGS if any(cells.get(score) for cells in rows.values())]
    reference = _reference(tables["results"])
    against = {
        "cumulative": " Intransigence: how far that is below training on all data so far (cumulative).",
        "joint": " Intransigence: how far that is below training on all data at once (joint).",
        None: "",
    }[reference]
    note = (
        "ACC: mean accuracy on all experiences at the end. Forgetting: how far accuracy fell from its best, mean over "
        "all experiences but the last. BWT: accuracy at the end minus accuracy when just learned. FWT: accuracy on an "
        "experience before learning it, above the untrained network. Learning acc.: accuracy on each experience when "
        f"just learned.{against} Seconds: what one cell (a strategy, a seed) took. "
        '"–": not measured (joint training has no earlier rows).'
    )
    return Section("Scores", table=_table(rows, measured), note=note)


def _selection(selection: pd.DataFrame) -> list[Section]:
    return [*_chosen(chosen_rows(selection)), *_tuned(tuned_rows(selection))]


def _chosen(rows: pd.DataFrame) -> list[Section]:
    if rows.empty:
        return []
    text = (
        "Every value was tried on training data held out, with other seeds than those above; taken was the best "
        "mean ACC."
    )
    lines = []
    for r in rows.itertuples():
        remark = f" ({r.remark})" if r.remark else ""
        chosen = f"chosen{remark}" if r.chosen else ""
        lines.append([str(r.strategy), str(r.value), percent(r.ACC), f"{r.seconds:.0f}", chosen])
    headings = ["strategy", "value", "ACC", "seconds", "chosen"]
    return [Section("How settings were chosen", text, Table(headings, lines))]


def _tuned(rows: pd.DataFrame) -> list[Section]:
    if rows.empty:
        return []
    text = (
        "Chosen continually, before each experience, on data of that experience alone; the tries are part of the "
        "cells' seconds."
    )
    lines = [
        [str(r.strategy), str(r.experience), str(r.values), f"{r.tries:.1f}", f"{r.seconds:.0f}"]
        for r in rows.itertuples(index=False)
    ]
    headings = ["strategy", "experience", "seed: λ", "tries a seed", "seconds"]
    return [Section("How strengths were chosen continually", text, Table(headings, lines))]


def _accuracy(config: Forgetting, tables: Tables) -> list[Section]:
    labels = dict.fromkeys(tables["results"]["label"])
    if not labels:
        return []
    over_stream = Section("Accuracy over the stream", figures=["accuracy_over_stream"])
    return [over_stream, Section("Accuracy matrices", figures=[f"matrix_{label}" for label in labels], small=True)]


def _probes(tables: Tables) -> list[Section]:
    return [stream_section(tables["traces"])] if "traces" in tables else []


def stream_section(traces: pd.DataFrame) -> Section:
    """Return what the probes saw at the end of each experience of a stream."""
    drawn = as_drawn(traces)
    last = drawn.groupby(["probe", "data", "part", "label", "experience"], sort=False).last()["mean"]
    ends = last.unstack("experience")
    headings = ["probe", "part", "data", "strategy", *(f"after {1 + t}" for t in ends.columns)]
    rows = [
        [str(probe), str(part) or "–", str(view), str(label), *map(number, own)]
        for (probe, view, part, label), own in zip(ends.index, ends.to_numpy(), strict=True)
    ]
    views = drawn[["probe", "data"]].drop_duplicates().itertuples(index=False)
    names = [f"trace_{view.probe}_{view.data}" for view in views]
    text = "At the end of each experience; mean over seeds. The figures show the whole stream."
    return Section("What the probes saw", text, Table(headings, rows), names)


def _naive(config: Forgetting) -> str | None:
    return next((strategy.title() for strategy in config.strategies if strategy.name == BASELINE), None)


def _best(config: Forgetting, summary: pd.DataFrame) -> str | None:
    streaming = [strategy.title() for strategy in config.strategies if strategy.name not in CEILINGS]
    acc = summary[(summary["score"] == "ACC") & summary["strategy"].isin(streaming)].set_index("strategy")
    return best_of(acc["mean"], acc["n"])


def _reference(results: pd.DataFrame) -> str | None:
    cells = results[["label", "strategy", "seed"]].drop_duplicates()
    return reference_of(list(cells["strategy"]))
