"""The page of the reproductions: docs/results.md, made from docs/results and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mas.experiments.kinds.forgetting.tables import chosen_rows
from mas.experiments.read_config import load_config
from mas.experiments.report.text import percent
from tools.bench.page import table
from tools.results.listed import Listed, listed_runs, machine


def page(folder: Path) -> str:
    """Return the whole page as Markdown: the runs that ``index.yaml`` lists, as far as their tables are there."""
    sections = [section(run, folder / run.name) for run in listed_runs(folder)]
    return _HEAD + "".join(sections)


def section(run: Listed, folder: Path) -> str:
    """Return the part of one run: what it is, how to make it again, its table, how settings were chosen, remarks."""
    config = load_config(folder / "config.yaml", try_data=False)
    tables = _read(folder)
    seconds = tables.summary[tables.summary["score"] == "seconds"]
    head = _SECTION.format(
        title=run.title,
        about=run.about,
        command=run.command,
        seeds=len(config.seed_list()),
        cells=_minutes((seconds["mean"] * seconds["n"]).sum()),
        tries=_minutes(tables.tries["seconds"].sum()),
        machine=machine(folder),
    )
    chosen = f"\n{_SELECTION}\n\n{_tried(tables.tries)}" if len(tables.tries) else ""
    remarks = "".join(f"\n- {remark}\n" for remark in run.remarks)
    return head + _scores(run, tables) + chosen + remarks


def final_acc(results: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of the final ACC, in percent, by strategy."""
    last = results[results["trained_on"] == results["trained_on"].max()]
    acc = 100 * last.groupby(["label", "seed"], sort=False)["accuracy"].mean()
    return acc.groupby("label", sort=False).agg(["mean", "std"])


@dataclass(frozen=True)
class _Tables:
    """The tables of a run; ``tries`` holds those of values from a list."""

    results: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    tries: pd.DataFrame


def _read(folder: Path) -> _Tables:
    selection = pd.read_csv(folder / "selection.csv")
    return _Tables(
        results=pd.read_csv(folder / "results.csv"),
        summary=pd.read_csv(folder / "summary.csv"),
        comparisons=pd.read_csv(folder / "comparisons.csv"),
        tries=selection[selection["experience"].isna()],
    )


def _scores(run: Listed, tables: _Tables) -> str:
    measured = tables.summary[tables.summary["mean"].notna()]
    shown = [score for score in _SHOWN if score in set(measured["score"])]
    literature = ["literature"] if run.literature else []
    titles = [_SHOWN[score] for score in shown]
    headings = ["strategy", "chosen", "ACC ± sd", "95 %", *literature, *titles, "p, ACC = naive's", "s a cell"]
    return table(headings, _score_lines(run, tables, shown))


def _score_lines(run: Listed, tables: _Tables, shown: Sequence[str]) -> list[list[str]]:
    acc = final_acc(tables.results)
    chosen = _chosen_values(tables.tries)
    scores = tables.summary.set_index(["strategy", "score"])
    lines = []
    for label in acc.index:
        low, high = 100 * scores.loc[(label, "ACC"), ["ci_low", "ci_high"]]
        cells = [label, chosen.get(label, "")]
        cells.append(f"{acc.loc[label, 'mean']:.2f} ± {acc.loc[label, 'std']:.2f}")
        cells.append(f"[{low:.2f}, {high:.2f}]")
        if run.literature:
            cells.append(f"{run.literature[label]:.2f}" if label in run.literature else "")
        cells += [percent(float(scores.loc[(label, score), "mean"])) for score in shown]
        cells.append(_p_against_naive(tables.comparisons, label))
        cells.append(f"{scores.loc[(label, 'seconds'), 'mean']:.0f}")
        lines.append(cells)
    return lines


def _chosen_values(tries: pd.DataFrame) -> Mapping[str, str]:
    """Return the value that was chosen, by strategy."""
    taken = tries[tries["chosen"].astype(bool)]
    return dict(zip(taken["strategy"], taken["value"], strict=True))


def _tried(tries: pd.DataFrame) -> str:
    """Return a row per strategy: every value with its ACC, the chosen one in bold, and the remark about it."""
    lines = []
    for label, own in chosen_rows(tries).groupby("strategy", sort=False):
        values = []
        for row in own.itertuples():
            text = f"{row.value}: {percent(row.ACC)}"
            values.append(f"**{text}**" if row.chosen else text)
        lines.append([str(label), ", ".join(values), "".join(own["remark"])])
    return table(("strategy", "value: ACC on held-out data", "remark"), lines)


def _p_against_naive(comparisons: pd.DataFrame, label: str) -> str:
    of_acc = comparisons[(comparisons["against"] == "naive") & (comparisons["score"] == "ACC")]
    row = of_acc[of_acc["strategy"] == label]
    return f"{row['p_holm'].iloc[0]:.1g}" if len(row) else ""


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f}"


_SHOWN = {"forgetting": "forgetting", "learning": "learning acc.", "intransigence": "intransigence"}
_HEAD = """\
# Results beside the literature's

Made by `python -m tools.results` from the tables under [docs/results](results); each section says by which command
they were run (`--keep runs/NAME` copies a run's tables there). ACC: mean accuracy on all experiences at the end, in
percent, mean ± standard deviation over seeds, and the 95 % bootstrap interval of the mean (which covers about 93 % at
5 seeds, but only 75 % at 3). *Chosen* is what `select` took, on training data held out and with other seeds; no test
image is looked at before the last run. p: paired t-test against naive, adjusted by Holm's method. Intransigence is
against joint training, where that was run. Times are of one core, two cells side by side, on a machine that had other
work too. Results are the same to the bit only for the same vector instructions, which these runs do not record;
[critical_periods.md](critical_periods.md#digits-with-other-vector-instructions) shows how much others may change.
"""
_SECTION = """
## {title}

{about}

```
{command}
```

{seeds} seeds; {cells} minutes of one core for the cells reported and {tries} for those that chose ({machine}).

"""
_SELECTION = "How settings were chosen (in bold: chosen):"
