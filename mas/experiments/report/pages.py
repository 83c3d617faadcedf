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
    """Say what intervals of few seeds are worth, or nothing where there are enough."""
    return _FEW_SEEDS if seeds < 5 else ""


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
    return f"{mean:{form}}" if np.isnan(low) else f"{mean:{form}} [{low:{form}}, {high:{form}}]"
