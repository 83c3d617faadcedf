"""Intervals, tests and Holm's adjustment against loops, closed forms and a second bootstrap."""

import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from mas.experiments.statistics import holm, mean_and_interval, paired_p


def expanded_by_loops(values, resamples=20_000):
    """Hesterberg 2015: the percentiles whose normal quantile is Student's, times √(n / (n − 1)); draws of its own."""
    draw, n = np.random.default_rng(3), len(values)
    means = sorted(statistics.fmean(draw.choice(values, n)) for _ in range(resamples))
    wide = stats.t.ppf(0.975, n - 1) * (n / (n - 1)) ** 0.5
    return [means[min(int(statistics.NormalDist().cdf(z) * resamples), resamples - 1)] for z in (-wide, wide)]


@pytest.mark.parametrize("values", [[0.5, 0.7, 0.9, 0.6, 0.65], [0.1, 0.12, 0.11, 0.5, 0.13, 0.09, 0.2, 0.15]])
def test_the_interval_is_the_expanded_percentile_bootstraps(values):
    found = mean_and_interval(values)
    width = max(values) - min(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert [found.ci_low, found.ci_high] == pytest.approx(expanded_by_loops(values), abs=0.02 * width)
    assert found.n == len(values)
    assert mean_and_interval(values) == found  # the same draw each time


def test_intervals_cover_what_the_docstring_says():
    draw = np.random.default_rng(0)
    for n, share in ((2, 0.5), (3, 0.75), (5, 0.93), (10, 0.94)):
        intervals = [mean_and_interval(draw.normal(size=n)) for _ in range(400)]
        assert np.mean([i.ci_low <= 0 <= i.ci_high for i in intervals]) == pytest.approx(share, abs=0.07)


def test_what_has_no_interval():
    assert mean_and_interval([])[3] == 0
    assert np.isnan(mean_and_interval([])[0])
    assert mean_and_interval([np.nan, 0.5])[::3] == (0.5, 1)
    assert mean_and_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5, 3)
    assert mean_and_interval([0.4, 0.5]) == pytest.approx((0.45, 0.4, 0.5, 2))


def test_p_is_the_paired_t_tests():
    a, b = [0.5, 0.7, 0.9, 0.6], [0.45, 0.71, 0.8, 0.55]
    differences = np.subtract(a, b)
    t = differences.mean() / (statistics.stdev(differences) / 2)
    assert paired_p(differences) == pytest.approx(2 * stats.t.sf(t, 3))


@pytest.mark.parametrize("differences", [[0.3], [0.1, 0.2], [1 / 360] * 5, [0.0] * 3, [0.3, 0.1 + 0.2, 0.3]])
def test_what_cannot_be_tested(differences):
    assert np.isnan(paired_p(differences))


def test_holm_rejects_what_the_stepwise_procedure_rejects():
    """Holm 1979: from the smallest p up, reject while p ≤ level / (tests that are left)."""
    for p in itertools.permutations([0.001, 0.012, 0.02, 0.04, 0.3]):
        for level in (0.01, 0.05, 0.1):
            rejected = set()
            for step, i in enumerate(sorted(range(5), key=p.__getitem__)):
                if p[i] > level / (5 - step):
                    break
                rejected.add(i)
            assert set(np.flatnonzero(holm(p) <= level)) == rejected


def test_holm_leaves_out_what_was_not_tested():
    assert holm([0.01, np.nan, 0.04]).tolist()[::2] == [0.02, 0.04]
    assert np.isnan(holm([0.01, np.nan])[1])
    assert holm([0.6, 0.9]).tolist() == [1, 1]
    assert holm([]).tolist() == []
