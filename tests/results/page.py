"""The page of the reproductions: docs/results.md, made from docs/results and nothing else."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from mas.experiments.report.forgetting import tried_rows
from mas.experiments.report.pages import percent

from tests.bench.page import table

Run = dict[str, Any]


def page(folder: Path) -> str:
    """Give the whole page as Markdown: the runs that ``index.yaml`` lists, as far as their tables are there."""
    runs = yaml.safe_load((folder / "index.yaml").read_text(encoding="utf-8"))
    return _HEAD + "".join(section(run, folder / run["name"]) for run in runs if (folder / run["name"]).is_dir())


def section(run: Run, folder: Path) -> str:
    """Give the part of one run: what it is, how to make it again, its table, how settings were chosen, remarks."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    summary, tries = pd.read_csv(folder / "summary.csv"), pd.read_csv(folder / "selection.csv")
    tries = tries[tries["experience"].isna()]
    seeds = config["seeds"] if isinstance(config["seeds"], int) else len(config["seeds"])
    told = _SECTION.format(
        title=run["title"],
        about=run["about"].strip(),
        command=run["command"],
        seeds=seeds,
        cells=_minutes(_of(summary, "seconds", "mean") * _of(summary, "seconds", "n")),
        tries=_minutes(tries["seconds"]),
        machine=machine(folder),
    )
    chosen = "\n\n" + _SELECTION + "\n\n" + _tried(tries) if len(tries) else ""
    remarks = "".join(f"\n- {remark}" for remark in run.get("remarks", ()))
    return told + _scores(run, folder, summary, tries) + chosen + ("\n" + remarks if remarks else "") + "\n"


def final_acc(results: pd.DataFrame) -> pd.DataFrame:
    """Give mean and standard deviation over seeds of the final ACC, in percent, by strategy."""
    last = results[results["trained_on"] == results["trained_on"].max()]
    acc = 100 * last.groupby(["label", "seed"], sort=False)["accuracy"].mean()
    return acc.groupby("label", sort=False).agg(["mean", "std"])


def machine(folder: Path) -> str:
    """Say on what a run was made."""
    *_, told = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return f"{told['cores']} cores of {told['processor']}, torch {told['packages']['torch']}"


def _scores(run: Run, folder: Path, summary: pd.DataFrame, tries: pd.DataFrame) -> str:
    acc = final_acc(pd.read_csv(folder / "results.csv"))
    comparisons = pd.read_csv(folder / "comparisons.csv")
    literature = run.get("literature", {})
    chosen = tries[tries["chosen"]].groupby("strategy")["value"].first() if len(tries) else {}
    scores = summary.set_index(["strategy", "score"])
    shown = [s for s in _SHOWN if summary[summary["score"] == s]["mean"].notna().any()]
    lines = []
    for label in acc.index:
        interval = scores.loc[(label, "ACC"), ["ci_low", "ci_high"]] * 100
        lines.append(
            (
                label,
                chosen.get(label, ""),
                f"{acc.loc[label, 'mean']:.2f} ± {acc.loc[label, 'std']:.2f}",
                f"[{interval.iloc[0]:.2f}, {interval.iloc[1]:.2f}]",
                *([f"{literature[label]:.2f}" if label in literature else ""] if literature else []),
                *(_percent(scores, label, score) for score in shown),
                _p(comparisons, label),
                f"{scores.loc[(label, 'seconds'), 'mean']:.0f}",
            )
        )
    heads = ("strategy", "chosen", "ACC ± sd", "95 %", *(["literature"] if literature else []))
    return table((*heads, *(_SHOWN[s] for s in shown), "p, ACC = naive's", "s a cell"), lines)


def _tried(tries: pd.DataFrame) -> str:
    """Give a row per strategy: every value with its ACC, the chosen one in bold, and what is to be said of it."""
    lines = []
    rows = pd.DataFrame(tried_rows(tries))
    for label, own in rows.groupby("strategy", sort=False):
        told = [f"{'**' * r.chosen}{r.value}: {r.ACC}{'**' * r.chosen}" for r in own.itertuples()]
        lines.append((str(label), ", ".join(told), "".join(own["remark"])))
    return table(("strategy", "value: ACC on held-out data", "remark"), lines)


def _percent(scores: pd.DataFrame, label: str, score: str) -> str:
    return percent(float(scores.loc[(label, score), "mean"]))


def _p(comparisons: pd.DataFrame, label: str) -> str:
    row = comparisons[(comparisons.strategy == label) & (comparisons.against == "naive") & (comparisons.score == "ACC")]
    return f"{row['p_holm'].iloc[0]:.1g}" if len(row) else ""


def _of(summary: pd.DataFrame, score: str, column: str) -> "pd.Series[float]":
    return summary[summary["score"] == score].set_index("strategy")[column]


def _minutes(seconds: Any) -> str:
    return f"{seconds.sum() / 60:.0f}"


_SHOWN = {"forgetting": "forgetting", "learning": "learning acc.", "intransigence": "intransigence"}
_HEAD = """\
# Results beside the literature's

Made by `python -m tests.results` from the tables under [docs/results](results); each section says by which command
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
