"""Intervals, tests and Holm's adjustment against loops, closed forms and a second bootstrap."""

import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from mas.experiments.statistics import holm, mean_and_interval, paired_p


def bca_by_loops(values, resamples=20_000):
    """Efron 1987, written out; its draws are its own."""
    draw, normal, n = np.random.default_rng(3), statistics.NormalDist(), len(values)
    means = sorted(statistics.fmean(draw.choice(values, n)) for _ in range(resamples))
    mean = statistics.fmean(values)
    below = sum(m < mean for m in means) + sum(m == mean for m in means) / 2
    z0 = normal.inv_cdf(below / resamples)
    left_out = [statistics.fmean(values[:i] + values[i + 1 :]) for i in range(n)]
    middle = statistics.fmean(left_out)
    cubes, squares = (sum((middle - x) ** k for x in left_out) for k in (3, 2))
    a = cubes / (6 * squares**1.5)
    ends = []
    for share in (0.025, 0.975):
        z = z0 + normal.inv_cdf(share)
        ends.append(means[int(normal.cdf(z0 + z / (1 - a * z)) * resamples)])
    return ends


@pytest.mark.parametrize("values", [[0.5, 0.7, 0.9, 0.6, 0.65], [0.1, 0.12, 0.11, 0.5, 0.13, 0.09, 0.2, 0.15]])
def test_the_interval_is_the_bca_bootstraps(values):
    found = mean_and_interval(values)
    width = max(values) - min(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert [found.ci_low, found.ci_high] == pytest.approx(bca_by_loops(values), abs=0.02 * width)
    assert found.n == len(values)
    assert mean_and_interval(values) == found  # the same draw each time


def test_what_has_no_interval():
    assert mean_and_interval([])[3] == 0
    assert np.isnan(mean_and_interval([])[0])
    assert mean_and_interval([np.nan, 0.5])[::3] == (0.5, 1)
    assert mean_and_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5, 3)
    assert not np.isnan(mean_and_interval([0.4, 0.5])).any()


def test_p_is_the_paired_t_tests():
    a, b = [0.5, 0.7, 0.9, 0.6], [0.45, 0.71, 0.8, 0.55]
    differences = np.subtract(a, b)
    t = differences.mean() / (statistics.stdev(differences) / 2)
    assert paired_p(differences) == pytest.approx(2 * stats.t.sf(t, 3))
    assert paired_p([0.1, 0.1]) == 0
    assert paired_p([0.0, 0.0]) == 1
    assert np.isnan(paired_p([0.3]))


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
