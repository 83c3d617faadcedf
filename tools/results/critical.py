"""The page of the critical periods: docs/critical_periods.md, made from docs/critical_periods and nothing else."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from mas.experiments.read_config import load_config
from mas.experiments.registry import kind_of
from mas.experiments.report.sections import Section
from mas.information import share_shift
from tools.bench.page import table
from tools.results.listed import Listed, listed_runs, machine

_TEXTS = ("deficit", "part")  # columns that may be empty, or look like numbers


def page(folder: Path) -> str:
    """Return the whole page as Markdown: the runs that ``index.yaml`` lists, as far as their tables are there."""
    sections = [section(run, folder / run.name) for run in listed_runs(folder)]
    return _HEAD + "".join(sections) + instruction_sets(folder)


def section(run: Listed, folder: Path) -> str:
    """Return the part of one run: what it is, how to make it again, remarks, its tables and figures."""
    config = load_config(folder / "config.yaml", try_data=False)
    tables = read_tables(folder)
    figures = {path.stem for path in folder.glob("figures/*.png")}
    made = kind_of(config).page(config, tables)
    cells, seconds = _cost(tables)
    head = _SECTION.format(
        title=run.title,
        about=run.about,
        command=run.command,
        introduction=made.introduction,
        cells=cells,
        minutes=f"{seconds / 60:.0f}",
        machine=machine(folder),
    )
    remarks = "".join(f"\n- {remark}" for remark in run.remarks)
    if remarks:
        remarks += "\n"
    parts = [section_text(own, f"critical_periods/{folder.name}/figures", figures) for own in made.sections]
    return head + remarks + "".join(parts)


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the tables of a run by name; texts that are empty are read as such, not as missing numbers."""
    return {path.stem: _read_table(path) for path in sorted(folder.glob("*.csv"))}


def section_text(section: Section, place: str, figures: Collection[str]) -> str:
    """Return a section of a kind's page as Markdown; nothing where only figures were in it that are not kept.

    Args:
        section: of the page.
        place: of the folder with the figures, from the page.
        figures: names of those that are there.
    """
    pictures = [f"![{name}]({place}/{name}.png)" for name in section.figures if name in figures]
    rows = ""
    if section.table is not None and section.table.rows:
        rows = table(section.table.headings, section.table.rows).strip()
    parts = [part for part in (section.text, rows, section.note, *pictures) if part]
    if not parts:
        return ""
    return "".join(f"\n{part}\n" for part in (f"### {section.title}", *parts))


def instruction_sets(folder: Path) -> str:
    """Return the part that compares runs with their repetition under AVX-512, kept in ``folder / "avx512"``."""
    rows: list[tuple[str, ...]] = []
    counts = []
    for again in sorted(path for path in (folder / "avx512").glob("*") if path.is_dir()):
        there = folder / again.name
        differing, cells = differing_cells(there, again)
        counts.append(f"- `{again.name}`: {differing} of {cells} cells end in another accuracy.")
        rows += [(again.name, *row) for row in compared(there, again)]
    if not rows:
        return ""
    return _INSTRUCTION_SETS.format(counts="\n".join(counts)) + table(_COMPARED, rows)


def differing_cells(there: Path, again: Path) -> tuple[int, int]:
    """Return how many cells of a run end in another accuracy in its repetition, and how many there are."""
    one, other = (_final_accuracies(path) for path in (there, again))
    return int((one != other.reindex(one.index)).sum()), len(one)


def compared(there: Path, again: Path) -> list[tuple[str, ...]]:
    """Return a row for each test that both runs made: what, loss and p in either, and whether p crosses 0.05."""
    rows = []
    for name, value in (("curves", "loss"), ("control", "left")):
        if not (again / f"{name}.csv").is_file():
            continue
        one, other = (_tests(path / f"{name}.csv") for path in (there, again))
        for at in one.index:
            p, q = one.loc[at, "p_holm"], other.loc[at, "p_holm"]
            losses = [f"{100 * found.loc[at, value]:.1f}" for found in (one, other)]
            crosses = "**yes**" if (p < 0.05) != (q < 0.05) else ""
            rows.append((*map(str, at), losses[0], f"{p:.2g}", losses[1], f"{q:.2g}", crosses))
    return rows


def final_share_divergences(traces: pd.DataFrame, impaired: str, clear: str, removal: int) -> tuple[float, float]:
    """Return two Jensen–Shannon divergences of the layers' shares of the Fisher trace (mean over seeds), in nats.

    Args:
        traces: of a run, as in its traces.csv.
        impaired, clear: labels of the run with the deficit and of the one without.
        removal: the epoch in which the deficit ends.

    Returns:
        Of the impaired and the clear network at the end; and of the clear network at ``removal`` and at the end.
    """
    layers = traces.query("probe == 'fisher_trace' and data == 'train' and part != 'all layers'")

    def trace(label: str, epoch: int) -> dict[str, float]:
        return layers[(layers["label"] == label) & (layers["epoch"] == epoch)].set_index("part")["mean"].to_dict()

    end = layers["epoch"].max()
    return share_shift(trace(impaired, end), trace(clear, end)), share_shift(trace(clear, removal), trace(clear, end))


def _final_accuracies(folder: Path) -> "pd.Series[float]":
    results = pd.read_csv(folder / "results.csv")
    return results[results["trained_on"] == 0].set_index(["label", "seed"])["accuracy"]


def _tests(file: Path) -> pd.DataFrame:
    """Return the rows of a table that hold a test, by curve, deficit and epoch."""
    found = pd.read_csv(file).fillna({"deficit": "–"})
    if "curve" not in found:
        found["curve"] = "left by the control"
    return found[found["p_holm"].notna()].set_index(["curve", "deficit", "epoch"])


def _cost(tables: dict[str, pd.DataFrame]) -> tuple[int, float]:
    """Return the number of cells, and the seconds they took together."""
    if "cells" in tables:
        return len(tables["cells"]), tables["cells"]["seconds"].sum()
    own = tables["summary"].query("score == 'seconds'")
    return int(own["n"].sum()), (own["mean"] * own["n"]).sum()


def _read_table(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str))
    texts = [name for name in _TEXTS if name in table]
    return table.fillna(dict.fromkeys(texts, ""))


_HEAD = """\
# Critical periods, measured

Made by `python -m tools.results` from the tables under [docs/critical_periods](critical_periods); each section says by
which command they were run (`--keep runs/NAME` copies a run's tables and figures there). Times are of one core, two
cells side by side, on a machine that had other work too. Results are the same to the bit only for the same vector
instructions: [the last section](#digits-with-other-vector-instructions) says what they change.
"""
_COMPARED = (
    "run",
    "curve",
    "deficit",
    "epoch",
    "loss, AVX2",
    "p (Holm)",
    "loss, AVX-512",
    "p (Holm)",
    "p crosses 0.05",
)
_INSTRUCTION_SETS = """
## Digits with other vector instructions

With other vector instructions torch adds numbers up in another order, and training lets the difference in rounding
grow. The first two runs of this page were repeated with torch 2.14.1: with `ATEN_CPU_CAPABILITY=avx2`, where the tables
above come out to the bit, and with what an AVX-512 processor takes by itself (`torch.backends.cpu.get_cpu_capability()`
tells), where they do not:

{counts}

The rows are the tests of these runs: what is lost, or what the control leaves of it, in percent, and p. The tables of
the AVX-512 runs are in [critical_periods/avx512](critical_periods/avx512). The other runs of this page were not
repeated, and do not say on which instructions they were made: a p near 0.05 may be another there.

"""
_SECTION = """
## {title}

{about}

```
{command}
```

{introduction} {cells} cells, {minutes} minutes of one core ({machine}).
"""
