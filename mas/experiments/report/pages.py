"""Files that people read: tables, figures, and one self-contained page a run."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader

from mas.experiments.store import Store

_FEW_SEEDS = (
    " With fewer than five seeds the interval cannot be wide enough: at three it covers the mean three times in four, "
    "at two every other time."
)


def write_files(store: Store, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, bytes]) -> None:
    """Write tables as CSV and figures as PNG; figures of before that are not among them go."""
    for name, table in tables.items():
        store.write(f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    for name, picture in figures.items():
        store.write(f"figures/{name}.png", picture)
    for path in (store.folder / "figures").glob("*.png"):
        if path.stem not in figures:
            path.unlink()


def render(template: str, **values: Any) -> str:
    """Fill in a template."""
    loader = PackageLoader("mas.experiments.report", "templates")
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
        .get_template(template)
        .render(**values)
    )


def few_seeds(seeds: int) -> str:
    """Say what intervals of few seeds are worth, or nothing where there are enough; one seed has no interval."""
    return _FEW_SEEDS if 1 < seeds < 5 else ""


def intervals(seeds: int, text: str) -> str:
    """Return a text about intervals and tests, or what to say where there is one seed and so none of them."""
    return "one seed: no interval, no test" if seeds == 1 else text


def as_text(picture: bytes) -> str:
    """Give a picture as base64, to stand in a page."""
    return base64.b64encode(picture).decode()


def percent(mean: float, low: float = np.nan, high: float = np.nan) -> str:
    """Give a share as percent, with its interval if it has one; "–" if there is none."""
    return number(100 * mean, 100 * low, 100 * high, ".1f")


def number(mean: float, low: float = np.nan, high: float = np.nan, form: str = ".3g") -> str:
    """Give a number with its interval if it has one; "–" if there is none."""
    if np.isnan(mean):
        return "–"
    if np.isnan(low):
        return _rounded(mean, form)
    return f"{_rounded(mean, form)} [{_rounded(low, form)}, {_rounded(high, form)}]"


def _rounded(value: float, form: str) -> str:
    """Return a number as text; one that is rounded to 0 has no sign."""
    text = f"{value:{form}}"
    return text.removeprefix("-") if float(text) == 0 else text
