import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student

from erasure.statistics import jackknife_interval, mean_interval, over_seeds, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 17), (995, 1000)])
def test_wilson_agrees_with_scipy(successes, trials):
    theirs = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_jackknife_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(0).normal(size=(200, 1))
    low, high = jackknife_interval(values, lambda rows: float(rows.mean()), groups=200)
    assert (low, high) == pytest.approx(mean_interval(values[:, 0]), rel=1e-6)


def test_the_jackknife_covers_the_truth():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = jackknife_interval(random.normal(size=(100, 1)), lambda rows: float(rows.var(ddof=1)))
        hits += low <= 1 <= high
    assert 170 <= hits <= 200


def test_intervals_over_seeds_are_students():
    values = [1.0, 2.0, 4.0]
    mean, (low, high) = over_seeds(values)
    theirs = student.interval(0.95, 2, loc=np.mean(values), scale=np.std(values, ddof=1) / np.sqrt(3))
    assert mean == pytest.approx(7 / 3) and (low, high) == pytest.approx(theirs)
