"""Numbers as people read them."""

import numpy as np
import pandas as pd

from mas.experiments.report.sections import Table

_FEW_SEEDS = (
    " With fewer than five seeds the interval cannot be wide enough: at three it covers the mean three times in four, "
    "at two every other time."
)
_PAIRED = (
    "mean over {seeds} seeds with the 95 % interval (expanded percentile bootstrap); differences are paired "
    "by seed, p of the paired t-test, adjusted by Holm's method"
)
SOME_DIVERGED = " Seeds that diverged are in no mean; points that lack some are open."


def percent(mean: float, low: float = np.nan, high: float = np.nan) -> str:
    """Return a share in percent, with its interval if it has one; "–" for NaN."""
    return number(100 * mean, 100 * low, 100 * high, ".1f")


def number(mean: float, low: float = np.nan, high: float = np.nan, form: str = ".3g") -> str:
    """Return a number with its interval if it has one; "–" for NaN."""
    if np.isnan(mean):
        return "–"
    if np.isnan(low):
        return _rounded(mean, form)
    return f"{_rounded(mean, form)} [{_rounded(low, form)}, {_rounded(high, form)}]"


def _rounded(value: float, form: str) -> str:
    """Return a number as text; one that is rounded to 0 has no sign."""
    text = f"{value:{form}}"
    return text.removeprefix("-") if float(text) == 0 else text


def p_value(value: float) -> str:
    """Return a p-value with two digits; "–" if nothing was tested."""
    return number(value, form=".2g")


def few_seeds(seeds: int) -> str:
    """Return a warning about intervals of few seeds; empty for one seed, which has none, and for five or more."""
    return _FEW_SEEDS if 1 < seeds < 5 else ""


def intervals(seeds: int, text: str) -> str:
    """Return a text about intervals and tests, or that there are none if there is only one seed."""
    return "one seed: no interval, no test" if seeds == 1 else text


def paired_introduction(seeds: int) -> str:
    """Return what the numbers of a table with paired differences are."""
    return "Percent; " + intervals(seeds, _PAIRED.format(seeds=seeds)) + "."


def of_fewer(n: int, expected: int) -> str:
    """Return the number of seeds behind a value that lacks some, because a run it is compared with diverged."""
    return f" ({n} of {expected} seeds)" if 0 < n < expected else ""


def with_diverged(shown: Table, table: pd.DataFrame) -> Table:
    """Add how many seeds of each row diverged, where any did.

    Args:
        shown: headings and rows.
        table: with the columns ``n`` and ``diverged``, a row for each row shown.
    """
    if not table["diverged"].any():
        return shown
    rows = []
    for row, own in zip(shown.rows, table.itertuples(), strict=True):
        seeds = own.n + own.diverged
        cell = f"{own.diverged} of {seeds}" if own.diverged else ""
        rows.append([*row, cell])
    return Table([*shown.headings, "diverged"], rows)


def diverged_text(table: pd.DataFrame) -> str:
    """Return what is done about seeds that diverged, if any did."""
    return SOME_DIVERGED if table["diverged"].any() else ""
