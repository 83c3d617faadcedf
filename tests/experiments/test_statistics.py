"""Intervals, tests and Holm's adjustment against loops, closed forms and a second bootstrap."""

import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from mas.experiments.statistics import (
    holm,
    mean_and_interval,
    paired_p,
    rank_correlation,
    rank_correlation_difference,
)


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


def clustered_values(clusters=20, size=6, *, noise=1.0, seed=0):
    """Return x, y and the clusters of values that share much within a cluster; some are equal."""
    draw = np.random.default_rng(seed)
    shared = np.repeat(draw.normal(size=(clusters, 2)), size, axis=0)
    x = (shared[:, 0] + 0.3 * draw.normal(size=len(shared))).round(1)
    y = (0.5 * x + noise * shared[:, 1] + 0.3 * draw.normal(size=len(shared))).round(1)
    return x, y, np.repeat(np.arange(clusters), size)


def resampled_by_loops(x, y, clusters, *, resamples=2000, seed=5):
    """Spearman's ρ of draws of whole clusters with replacement."""
    draw = np.random.default_rng(seed)
    members = [np.flatnonzero(clusters == label) for label in np.unique(clusters)]
    drawn = [
        np.concatenate([members[i] for i in draw.integers(len(members), size=len(members))]) for _ in range(resamples)
    ]
    return np.array([stats.spearmanr(x[rows], y[rows]).statistic for rows in drawn])


@pytest.mark.parametrize("seed", range(3))
def test_the_rank_correlation_is_scipys(seed):
    x, y, clusters = clustered_values(seed=seed)
    found = rank_correlation(x, y, clusters)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.n == len(x)
    assert rank_correlation(x, y, clusters) == found  # the same draw each time


def test_the_interval_of_a_rank_correlation_resamples_clusters():
    x, y, clusters = clustered_values()
    found = rank_correlation(x, y, clusters)
    low, high = np.quantile(resampled_by_loops(x, y, clusters), [0.025, 0.975])
    assert [found.ci_low, found.ci_high] == pytest.approx([low, high], abs=0.03)
    alone = rank_correlation(x, y, np.arange(len(x)))  # as if all values were independent
    assert alone.rho == found.rho
    assert found.ci_high - found.ci_low > 1.4 * (alone.ci_high - alone.ci_low)


def test_p_of_a_rank_correlation_is_twice_the_share_beyond_zero():
    x, y, clusters = clustered_values(noise=3.0, seed=2)
    found = rank_correlation(x, y, clusters)
    resampled = resampled_by_loops(x, y, clusters)
    assert found.p == pytest.approx(2 * min((resampled <= 0).mean(), (resampled >= 0).mean()), abs=0.04)
    assert 0.05 < found.p < 1
    assert rank_correlation(x, x, clusters)[:3] == pytest.approx((1, 1, 1))
    assert rank_correlation(x, x, clusters).p == 2 / 4000


def test_the_names_and_the_order_of_clusters_do_not_matter():
    x, y, clusters = clustered_values()
    found = rank_correlation(x, y, clusters)
    assert rank_correlation(x, y, 10 * clusters + 3) == found
    order = np.random.default_rng(1).permutation(len(x))
    assert rank_correlation(x[order], y[order], clusters[order]) == pytest.approx(found, abs=1e-12)


def test_a_difference_of_rank_correlations_uses_the_same_resamples():
    x, y, clusters = clustered_values(noise=3.0, seed=2)
    other = clustered_values(seed=4)[1]
    found = rank_correlation_difference(x, y, other, clusters)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic - stats.spearmanr(x, other).statistic, abs=1e-12)
    differences = resampled_by_loops(x, y, clusters) - resampled_by_loops(x, other, clusters)
    assert [found.ci_low, found.ci_high] == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.07)
    assert rank_correlation_difference(x, y, y, clusters)[:3] == (0, 0, 0)
    assert rank_correlation_difference(x, y, y, clusters).p == 1


def test_rank_correlations_leave_out_nans():
    x, y, clusters = clustered_values()
    gaps = y.copy()
    gaps[::7] = np.nan
    kept = ~np.isnan(gaps)
    assert rank_correlation(x, gaps, clusters) == rank_correlation(x[kept], y[kept], clusters[kept])


def test_rank_correlations_that_are_not_known():
    assert np.isnan(rank_correlation([], [], [])[:3]).all()
    assert np.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0, 1, 2]).rho)
    two_clusters = rank_correlation([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1])
    assert two_clusters.rho == pytest.approx(1)
    assert np.isnan([two_clusters.ci_low, two_clusters.ci_high, two_clusters.p]).all()


def test_one_cluster_that_differs_is_no_clear_correlation():
    """A third of the resamples lack it, and then y is constant."""
    clusters = np.repeat(np.arange(12), 5)
    x = np.arange(60.0)
    y = np.where(np.arange(60) == 57, 1.0, 0.0)
    found = rank_correlation(x, y, clusters)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.ci_low == 0
    assert found.p > 0.6
    assert rank_correlation_difference(x, y, 0 * y + x, clusters).p < 0.01


@pytest.mark.slow
def test_the_interval_of_clusters_covers():
    """Without a correlation, 0 lies in the interval about 19 times in 20; if values counted as independent, seldom."""
    covered, naively = [], []
    for seed in range(150):
        draw = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(30), 5)
        x, y = (np.repeat(draw.normal(size=30), 5) + 0.1 * draw.normal(size=150) for _ in range(2))
        own, alone = rank_correlation(x, y, clusters), rank_correlation(x, y, np.arange(150))
        covered.append(own.ci_low <= 0 <= own.ci_high)
        naively.append(alone.ci_low <= 0 <= alone.ci_high)
    assert np.mean(covered) > 0.88
    assert np.mean(naively) < 0.75
