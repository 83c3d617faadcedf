"""Intervals and tests over seeds. A seed is one draw of initial weights, batch order and stream."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Vector = npt.NDArray[np.float64]
Numbers = npt.ArrayLike

_RESAMPLES = 9999


class Mean(NamedTuple):
    """A mean over seeds with the ends of its 95 % interval; NaN where there are too few seeds."""

    mean: float
    ci_low: float
    ci_high: float
    n: int


def mean_and_interval(values: Numbers) -> Mean:
    """Return the mean and its 95 % bootstrap interval, from 9,999 resamples, the same ones each time.

    It is the expanded percentile interval. A plain percentile interval is too narrow for two reasons:
    the spread of resamples is smaller by √((n−1)/n), and the normal distribution has lighter tails
    than Student's t. The level is raised to make up for both. For normal samples the interval then
    covers the mean in 93 % of cases with 5 values and 94 % with 10. A mean of resamples never exceeds
    the greatest value, so with 3 values it covers the mean in 75 % of cases only, and with 2 in 50 %.

    NaNs are left out. With fewer than two values there is no interval.

    Source: Hesterberg 2015, What teachers should know about the bootstrap, sec. 3.2.

    >>> mean_and_interval([1.0])
    Mean(mean=1.0, ci_low=nan, ci_high=nan, n=1)
    """
    x = _without_nans(values)
    n = len(x)
    if n == 0:
        return Mean(np.nan, np.nan, np.nan, n)
    mean = float(x.mean())
    if n == 1:
        return Mean(mean, np.nan, np.nan, n)
    if _is_constant(x):
        return Mean(mean, float(x.min()), float(x.max()), n)
    spread = np.sqrt(n / (n - 1))
    quantile = stats.t.ppf(0.025, n - 1)
    tail = stats.norm.cdf(spread * quantile)
    draw = stats.bootstrap(
        (x,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = draw.confidence_interval
    return Mean(mean, float(low), float(high), n)


def paired_p(differences: Numbers) -> float:
    """Return the two-sided p-value of the paired t-test, from the differences of pairs.

    NaN where nothing can be tested: with fewer than three pairs, or where all differences are equal
    and so have no spread.
    """
    x = _without_nans(differences)
    if len(x) < 3 or _is_constant(x):
        return np.nan
    return float(stats.ttest_1samp(x, 0.0).pvalue)


def holm(p_values: Numbers) -> Vector:
    """Return the p-values of a family of tests adjusted by Holm's method; NaN means "not tested" and stays.

    Source: Holm 1979.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    tests_left = np.arange(len(order), 0, -1)
    stepped = np.maximum.accumulate(p[order] * tests_left)
    adjusted = p.copy()
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _without_nans(values: Numbers) -> Vector:
    x = np.asarray(values, dtype=np.float64)
    return x[~np.isnan(x)]


def _is_constant(x: Vector) -> bool:
    """Return whether all values are equal but for rounding."""
    scale = max(1.0, float(np.abs(x).max()))
    return bool(np.ptp(x) <= 1e-12 * scale)
