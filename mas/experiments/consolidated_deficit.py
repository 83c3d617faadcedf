"""A badly-born memory: the impaired epochs are a task that is protected while clear ones follow.

The stream has two experiences, the data impaired and the same data clear. A strategy protects what
the first has taught. Does that deepen the impairment?
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from mas.experiments.config import ConsolidatedDeficit, resolved
from mas.experiments.probed import diverged, layer_traces, shift
from mas.experiments.statistics import holm, mean_and_interval, paired_p

Record = dict[str, Any]
SCORES = {
    "accuracy": "accuracy on clear test data at the end",
    "impaired_accuracy": "accuracy on impaired test data at the end",
    "forgetting": "how far that fell since the end of the deficit",
    "intransigence": "how far accuracy is below that of a network trained on clear data alone, as many clear epochs",
    "trace_peak": "greatest Fisher trace in training, on the data trained on",
    "trace_final": "Fisher trace at the end",
    "share_shift": "Jensen–Shannon shift of the layers' shares of the trace, from the end of the deficit to the end",
}
SCORE_COLUMNS = [
    "strategy",
    "strength",
    "length",
    "score",
    "mean",
    "ci_low",
    "ci_high",
    "n",
    "diverged",
    "difference",
    "p",
    "p_holm",
]
_REFERENCE = "clear"


def plan(config: ConsolidatedDeficit) -> dict[str, dict[str, Any]]:
    """Give the settings of each run's cells, by label; the reference, without a deficit, comes first."""
    data = resolved(config)
    common = {key: data[key] for key in ("experiment", "model", "probes")}
    clear = {**common, "benchmark": data["benchmark"], "training": data["training"], "strategy": {"name": "naive"}}
    made = {_REFERENCE: clear}
    deficit = config.deficit.model_dump(exclude={"label"})
    for label, _, strategy, length in _variants(config):
        made[label] = {
            **common,
            "benchmark": data["benchmark"] | {"stream": "recovery", "deficit": deficit},
            "training": data["training"] | {"epochs": [length, data["training"]["epochs"]]},
            "strategy": strategy,
        }
    return made


def scores_of(config: ConsolidatedDeficit, records: Sequence[Record]) -> pd.DataFrame:
    """Give every score's mean over seeds, with its 95 % interval: columns `SCORE_COLUMNS`, scores of `SCORES`.

    ``difference`` is that from the run of the same length with the strength 0 or without protection,
    paired by seed, where there is one; ``p`` is that of its paired t-test, ``p_holm`` adjusted for all
    that are compared in one score. Seeds that ``diverged`` are in no mean.
    """
    finished = [r for r in records if r["status"] == "finished"]
    reference = {r["seed"]: r["accuracy"][-1][-1] for r in finished if r["label"] == _REFERENCE}
    found = {(r["label"], r["seed"]): _scores(r, reference) for r in finished if r["label"] != _REFERENCE}
    rows, lost_seeds = [], diverged(records)
    variants = list(_variants(config))
    for label, title, strategy, length in variants:
        base = next((lab for lab, _, s, n in variants if n == length and _unprotected(s)), None)
        for score in SCORES:
            own = {seed: s[score] for (lab, seed), s in found.items() if lab == label and score in s}
            other = {seed: s[score] for (lab, seed), s in found.items() if lab == base and score in s}
            gain = [own[seed] - other[seed] for seed in own if seed in other and label != base]
            rows.append(
                (
                    *(title, strategy.get("lam"), length, score),
                    *mean_and_interval(list(own.values())),
                    lost_seeds[label],
                    *(mean_and_interval(gain).mean, paired_p(gain)),
                )
            )
    table = pd.DataFrame(rows, columns=SCORE_COLUMNS[:-1])
    return table.assign(p_holm=table.groupby("score", sort=False)["p"].transform(holm).astype(float))


def variant_labels(config: ConsolidatedDeficit) -> list[str]:
    """Give the label of each run but the reference."""
    return [label for label, *_ in _variants(config)]


def _variants(config: ConsolidatedDeficit) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    """Give (label, title, plain strategy, length of the deficit) of each run but the reference."""
    for length in config.lengths:
        for strategy in config.strategies:
            plain = strategy.model_dump(mode="json", exclude={"label"})
            strengths = plain.get("lam")
            for lam in strengths if isinstance(strengths, list) else [strengths]:
                title = strategy.title()
                own = plain if lam is None else plain | {"lam": lam}
                yield f"{title}{'' if lam is None else f'-{lam:g}'}_{length}", title, own, length


def _unprotected(strategy: dict[str, Any]) -> bool:
    return strategy["name"] == "naive" or strategy.get("lam") == 0


def _scores(record: Record, reference: dict[int, float]) -> dict[str, float]:
    learned, final = record["accuracy"]
    scores = {
        "accuracy": final[1],
        "impaired_accuracy": final[0],
        "forgetting": learned[0] - final[0],
    }
    if record["seed"] in reference:
        scores["intransigence"] = reference[record["seed"]] - final[1]
    traces = layer_traces(record, "train")
    if traces:
        totals = {at: sum(layers.values()) for at, layers in traces.items()}
        trained = [total for (_, _, iteration), total in totals.items() if iteration]  # 0: not yet on these data
        scores |= {"trace_peak": max(trained), "trace_final": trained[-1]}
        scores["share_shift"] = shift(traces, (1, 0))
    return scores
