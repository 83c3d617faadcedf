"""What people read of distances and forgetting."""

from collections.abc import Sequence

import pandas as pd

from mas.experiments.kind import Tables
from mas.experiments.kinds.distance_vs_forgetting.config import NAIVE, DistanceVsForgetting
from mas.experiments.kinds.distance_vs_forgetting.figures import best_distance, in_words, title_of
from mas.experiments.report.sections import Headline, Page, Section, Table
from mas.experiments.report.text import few_seeds, p_value, percent

LEVEL = 0.05  # of a clear correlation: p after Holm's adjustment is below

_SCORES = {"ACC": "ACC", "forgetting": "forgetting", "learning": "learning acc."}


def page(config: DistanceVsForgetting, tables: Tables) -> Page:
    """Return the page of a run."""
    correlations = tables["correlations"]
    has_figures = best_distance(correlations) is not None
    return Page(
        "does distance predict forgetting?",
        _introduction(tables),
        [
            Section("Answers", " ".join(answers(correlations)), _answers_table(correlations)),
            Section("Pairs of tasks", _PAIRS, _level_table(correlations, "step"), _if(has_figures, _STEP_FIGURES)),
            Section("Streams", _STREAMS, _level_table(correlations, "stream"), _if(has_figures, _STREAM_FIGURES)),
            Section("Scores", table=_scores_table(tables["summary"]), note=_SCORES_NOTE),
        ],
    )


def headline(config: DistanceVsForgetting, tables: Tables) -> Headline:
    """Return what a terminal shows of a run."""
    correlations = tables["correlations"]
    title = f"Spearman's ρ with what is forgotten, {_streams_in(tables)} streams [95 % interval over streams]"
    return Headline(title, _answers_table(correlations), answers(correlations))


def answers(correlations: pd.DataFrame) -> list[str]:
    """Return the answers in words: is there a clear correlation, which is the strongest, does protection change it?"""
    return [
        _answer("Forgetting by naive training, pair by pair", _rows(correlations, "step", "drop", NAIVE)),
        _answer("Forgetting by naive training, stream by stream", _rows(correlations, "stream", "forgetting", NAIVE)),
        _answer("Transfer to the next task", _rows(correlations, "step", "transfer", NAIVE)),
        _protection_answer(correlations),
    ]


_STEP_FIGURES = ("drop", "correlations_step")
_STREAM_FIGURES = ("streams", "correlations_stream")
_PAIRS = (
    "Drop: accuracy on an earlier task before learning another, minus that after it, for every pair of a stream. "
    "Transfer: accuracy of naive training on a task that it has just learned, minus that of a network that learns the "
    "task from its initial weights; for consecutive tasks, so that it does not depend on the strategy. Pairs of one "
    "stream share tasks and a network, so they are not independent: intervals and p come from a bootstrap that "
    "resamples whole streams. Arrows: a distance that is not the same there and back."
)
_STREAMS = (
    "Complexity: sum over the tasks of the distance to the trivial task. Heterogeneity: sum of the distances from each "
    "task to the next. Each stream is one value."
)
_SCORES_NOTE = "Percent, mean [95 % interval over seeds]. from_scratch begins each task with the initial weights."


def _introduction(tables: Tables) -> str:
    correlations = tables["correlations"]
    tested = correlations["p"].notna().sum() + correlations["difference_p"].notna().sum()
    seeds = _streams_in(tables)
    return (
        f"{seeds} random streams, one for each seed. ρ is Spearman's rank correlation, with the 95 % interval of a "
        f"bootstrap that resamples streams.{few_seeds(seeds)} {tested} correlations and differences are tested, so "
        "that some look clear by chance: p is adjusted by Holm's method for all of one outcome and level (pairs of "
        f"tasks, or streams). * marks p < {LEVEL} after it. The least p that the resamples can give is 0.0005 before "
        "the adjustment."
    )


def _streams_in(tables: Tables) -> int:
    streams = tables["streams"]
    return 0 if streams.empty else streams["seed"].nunique()


def _answer(subject: str, rows: pd.DataFrame) -> str:
    """Return how many of the scores go clearly with an outcome, and the strongest of them."""
    known = rows.dropna(subset="rho")
    if known.empty:
        return f"{subject}: not measured."
    strongest = known.loc[known["rho"].abs().idxmax()]
    shown = f"{title_of(strongest['score'])} (ρ {in_words(*_interval(strongest))})"
    clear = known[known["p_holm"] < LEVEL]
    if clear.empty:
        return f"{subject}: no clear correlation with any of {len(known)} scores; the strongest is {shown}."
    return f"{subject}: clear correlations with {len(clear)} of {len(known)} scores; the strongest is {shown}."


def _protection_answer(correlations: pd.DataFrame) -> str:
    """Return what protection changes in the correlation of naive's best distance with the drop."""
    best = best_distance(correlations)
    drops = correlations[(correlations["level"] == "step") & (correlations["outcome"] == "drop")]
    own = drops[(drops["score"] == best) & (drops["strategy"] != NAIVE)].dropna(subset="difference")
    if own.empty:
        return "Protection: not measured."
    parts = []
    for _, row in own.iterrows():
        difference = in_words(row["difference"], row["difference_ci_low"], row["difference_ci_high"])
        clear = "clear" if row["difference_p_holm"] < LEVEL else "not clear"
        parts.append(f"{row['strategy']} changes it by {difference} ({clear})")
    chosen = "naive's strongest on these streams, so that others are likely to be weaker"
    return f"ρ of {title_of(str(best))} ({chosen}) with the drop: {', '.join(parts)}."


def _rows(correlations: pd.DataFrame, level: str, outcome: str, strategy: str) -> pd.DataFrame:
    of_outcome = correlations[(correlations["level"] == level) & (correlations["outcome"] == outcome)]
    return of_outcome[of_outcome["strategy"] == strategy]


def _answers_table(correlations: pd.DataFrame) -> Table:
    """Return ρ with the drop of a pair: a row for each score, a column for each strategy."""
    return _by_strategy(correlations[(correlations["level"] == "step") & (correlations["outcome"] == "drop")])


def _by_strategy(rows: pd.DataFrame) -> Table:
    strategies = list(dict.fromkeys(rows["strategy"]))
    lines = []
    for score, own in rows.groupby("score", sort=False):
        by_strategy = own.set_index("strategy")
        lines.append([title_of(str(score)), *(_starred(by_strategy.loc[name]) for name in strategies)])
    return Table(["score", *strategies], lines)


def _level_table(correlations: pd.DataFrame, level: str) -> Table:
    """Return every correlation of one level."""
    lines = []
    for _, row in correlations[correlations["level"] == level].iterrows():
        difference = in_words(row["difference"], row["difference_ci_low"], row["difference_ci_high"])
        star = "*" if row["difference_p_holm"] < LEVEL else ""
        name = [str(row["outcome"]), str(row["strategy"]), title_of(str(row["score"]))]
        lines.append(
            [*name, _starred(row), str(row["n"]), p_value(row["p"]), p_value(row["p_holm"]), difference + star]
        )
    headings = ["outcome", "strategy", "score", "ρ", "n", "p", "p (Holm)", "ρ − naive's"]
    return Table(headings, lines)


def _starred(row: pd.Series) -> str:
    return in_words(*_interval(row)) + ("*" if row["p_holm"] < LEVEL else "")


def _interval(row: pd.Series) -> tuple[float, float, float]:
    return row["rho"], row["ci_low"], row["ci_high"]


def _scores_table(summary: pd.DataFrame) -> Table:
    lines = []
    for strategy, own in summary.groupby("strategy", sort=False):
        by_score = own.set_index("score")
        cells = []
        for score in _SCORES:
            known = score in by_score.index
            cells.append(percent(*by_score.loc[score, ["mean", "ci_low", "ci_high"]]) if known else "–")
        lines.append([str(strategy), *cells])
    return Table(["strategy", *_SCORES.values()], lines)


def _if(condition: bool, names: Sequence[str]) -> Sequence[str]:
    return names if condition else ()
