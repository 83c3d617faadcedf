"""The page of the speed table: docs/benchmarks.md, made from docs/benchmarks.json and nothing else."""

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


def page(results: dict[str, Any]) -> str:
    """Return the whole page as Markdown."""
    machine = results["machine"]
    told = ", ".join(f"{key} {value}" for key, value in machine.items())
    parts = [_HEAD.format(machine=told, command=results["command"], repeats=results["repeats"])]
    parts += [_importance(device, rows) for device, rows in results["importance"].items()]
    parts += [_steps(device, rows) for device, rows in results["step"].items()]
    parts += [_data(device, rows) for device, rows in results["data"].items()]
    parts += [_memory(device, rows) for device, rows in results["memory"].items()]
    parts += [_task2vec(device, rows) for device, rows in results.get("task2vec", {}).items()]  # newer than some files
    return "".join(parts)


def summary(results: dict[str, Any]) -> str:
    """Return the few rows that the README shows."""
    rows = results["importance"]["cpu"]
    ratio = {(row["case"], row["way"]): row["ratio"] for row in rows if "ratio" in row}
    ways = [way for way in dict.fromkeys(row["way"] for row in rows) if way != "plain pass"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = [(way, *(f"{ratio[case, way]:.2f}" if (case, way) in ratio else "–" for case in cases)) for way in ways]
    return table(("÷ one plain forward and backward pass", *cases), lines)


def _importance(device: str, rows: list[Row]) -> str:
    lines = [
        (
            row["case"],
            row["way"],
            f"{row['ms']:.0f}" if "ms" in row else "–",
            _ratio(row),
            f"≤ {row['target']}" if row.get("target") and row["way"].startswith("here") else "",
            f"{row['share']:.3f}" if "share" in row else "",
            f"{row['error']:.0e}" if "error" in row else "",
            row["note"],
        )
        for row in rows
    ]
    return _IMPORTANCE.format(device=device.upper()) + table(
        ("model", "what", "ms", "÷ plain pass (min–max)", "target", "Σ ÷ Σ exact", "error", ""), lines
    )


def _steps(device: str, rows: list[Row]) -> str:
    counts = sorted({row["tasks"] for row in rows})
    ways = dict.fromkeys((row["case"], row["way"]) for row in rows)
    by = {(row["case"], row["way"], row["tasks"]): row for row in rows}
    lines = [
        (case, way, *(f"{by[case, way, n]['ms']:.2f} ms, {_ratio(by[case, way, n])}" for n in counts))
        for case, way in ways
    ]
    target = rows[0]["target"]
    heads = ("model", "what", *(f"{n} task{'s' * (n > 1)}" for n in counts))
    return _STEP.format(device=device.upper(), target=target) + table(heads, lines)


def _data(device: str, rows: list[Row]) -> str:
    lines = [(row["way"], f"{row['ms']:.0f}", _ratio(row)) for row in rows]
    head = _DATA.format(device=device.upper(), case=rows[0]["case"], target=rows[0]["target"])
    return head + table(("what", "ms", "÷ bare loop (min–max)"), lines)


def _memory(device: str, rows: list[Row]) -> str:
    sizes = sorted({row["batch"] for row in rows})
    ways = dict.fromkeys((row["case"], row["way"]) for row in rows)
    by = {(row["case"], row["way"], row["batch"]): row["mb"] for row in rows}
    lines = [(case, way, *(f"{by[case, way, n]:.0f}" for n in sizes)) for case, way in ways]
    return _MEMORY.format(device=device.upper()) + table(("model", "what", *(f"batch {n}" for n in sizes)), lines)


def _task2vec(device: str, rows: list[Row]) -> str:
    lines = [
        (row["case"], row["way"], f"{row['ms']:.0f}", _ratio(row), f"≤ {row['target']}" if row["target"] else "")
        for row in rows
    ]
    head = _TASK2VEC.format(device=device.upper())
    return head + table(("model", "what", "ms", "÷ plain pass (min–max)", "target"), lines)


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f} ({row['low']:.2f}–{row['high']:.2f})" if "ratio" in row else "–"


def table(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    heads = tuple(heads)
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


_HEAD = """\
# Speed and memory

Measured by `{command}`, which writes this page and the JSON beside it. One thread; medians of
{repeats} turns, in each of which every way was timed once; in brackets the least and the greatest ratio.

Machine: {machine}.
"""
_IMPORTANCE = """
## Importance ÷ one plain forward and backward pass, {device}

Over the same batches. *Exact* is the loop over single samples, in float32 as all are: *Σ ÷ Σ
exact* is the sum of all importances in parts of its sum, *error* the greatest deviation in parts
of the greatest importance. "Sampled" draws labels, so it has neither. Avalanche's plugins are
timed as a strategy calls them, with their data loader. The loop, vmap and BackPACK are timed on one
batch, against a plain pass over it.

"""
_STEP = """
## Training step with a penalty ÷ naive step, {device}

SGD, batch 128, by the number of tasks behind the step; target ≤ {target} and flat. A penalty reads
four numbers for each weight (weight, gradient, anchor, importance) and writes one: it waits for memory,
and weighs most where a step does little else with a weight, as in a fully connected network.

"""
_DATA = """
## A run over data in memory ÷ a bare PyTorch loop, {device}

One epoch over 12,000 grey images of 28 x 28, {case}, batch 128, Adam; target ≤ {target}. The bare
loop takes rows of one normalised tensor; *here* images are bytes, normalised batch by batch, and every
loss is checked.

"""
_MEMORY = """
## Peak memory of a pass, {device}

MB above what the same pass took for one sample. A plain pass keeps its activations, so it grows
with the batch; importance frees them layer by layer too, and adds a bounded number of bytes.

"""
_TASK2VEC = """
## Task2Vec embedding of a task ÷ one plain forward and backward epoch, {device}

Over the same images, fewer than a task has: both sides grow with their number alike. The Fisher information of the
filters by Hutchinson's estimator, with a head that is fitted already; apart from it, the features' forward
pass and the fit of the head.

"""
