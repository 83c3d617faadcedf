"""The page of the critical periods: docs/critical_periods.md, made from docs/critical_periods and nothing else."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mas.experiments.loading import load_config
from mas.experiments.report.probed import Section, introduction, sections_of
from tests.bench.page import table
from tests.results.page import machine

Run = dict[str, Any]


def page(folder: Path) -> str:
    """Give the whole page as Markdown: the runs that ``index.yaml`` lists, as far as their tables are there."""
    runs = yaml.safe_load((folder / "index.yaml").read_text(encoding="utf-8"))
    return _HEAD + "".join(section(run, folder / run["name"]) for run in runs if (folder / run["name"]).is_dir())


def section(run: Run, folder: Path) -> str:
    """Give the part of one run: what it is, how to make it again, its tables and figures, remarks."""
    config = load_config(folder / "config.yaml", try_data=False)
    tables = {path.stem: pd.read_csv(path, keep_default_na=True) for path in folder.glob("*.csv")}
    tables = {name: _with_text(content) for name, content in tables.items()}
    figures = sorted(path.stem for path in folder.glob("figures/*.png"))
    remarks = "".join(f"\n- {remark.strip()}" for remark in run.get("remarks", ()))
    cells, seconds = _cost(tables)
    told = _SECTION.format(
        title=run["title"],
        about=run["about"].strip(),
        command=run["command"],
        introduction=introduction(config),
        cells=cells,
        minutes=f"{seconds / 60:.0f}",
        machine=machine(folder),
    )
    own = sections_of(config, {"shares": pd.DataFrame(), "control": pd.DataFrame(), **tables}, figures)
    return told + (remarks + "\n" if remarks else "") + "".join(_shown(s, folder, figures) for s in own)


def _shown(own: Section, folder: Path, figures: list[str]) -> str:
    there = [name for name in own.figures if name in figures]
    pictures = [f"![{name}](critical_periods/{folder.name}/figures/{name}.png)" for name in there]
    rows = table(tuple(own.headings), own.rows).strip() if own.rows else ""
    return "".join(f"\n{part}\n" for part in (f"### {own.title}", own.text, rows, *pictures) if part)


def _cost(tables: dict[str, pd.DataFrame]) -> tuple[int, float]:
    """Give the number of cells, and their seconds."""
    if "cells" in tables:
        return len(tables["cells"]), tables["cells"]["seconds"].sum()
    own = tables["summary"].query("score == 'seconds'")
    return int(own["n"].sum()), (own["mean"] * own["n"]).sum()


def _with_text(content: pd.DataFrame) -> pd.DataFrame:
    """Read an empty text back as such."""
    texts = [name for name in ("deficit", "part") if name in content]
    return content.fillna(dict.fromkeys(texts, ""))


_HEAD = """\
# Critical periods, measured

Made by `python -m tests.results` from the tables under [docs/critical_periods](critical_periods); each section says by
which command they were run (`--keep runs/NAME` copies a run's tables and figures there). Times are of one core, two
cells side by side, on a machine that had other work too.
"""
_SECTION = """
## {title}

{about}

```
{command}
```

{introduction} {cells} cells, {minutes} minutes of one core ({machine}).
"""
