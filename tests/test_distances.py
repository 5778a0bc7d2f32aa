import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from erasure.distances import frechet, kernel_distance
from erasure.errors import DataError


def textbook(a, b):
    """Heusel et al., 2017, with the matrix square root."""
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)


@pytest.mark.parametrize(("n", "m", "d"), [(500, 400, 16), (30, 400, 16), (12, 9, 64)])
def test_the_nuclear_norm_is_the_trace_of_the_square_root(n, m, d):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(n, d)) @ random.normal(size=(d, d)), random.normal(1, 2, size=(m, d))
    reference = textbook(a, b)
    # With fewer rows than dimensions the textbook's square root of a singular matrix is itself inexact.
    assert frechet(a, b) == pytest.approx(reference, rel=1e-6 if min(n, m) > d else 1e-2)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)


def test_identical_sets_are_at_distance_zero():
    a = np.random.default_rng(0).normal(size=(50, 8))
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-9)


def test_two_gaussians_have_their_closed_form():
    random = np.random.default_rng(0)
    a = random.normal(0, 1, size=(200_000, 2))
    b = random.normal(3, 2, size=(200_000, 2))
    assert frechet(a, b) == pytest.approx(2 * 9 + 2 * (2 - 1) ** 2, rel=0.01)


def test_kid_equals_the_brute_force_sum():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(20, 5)), random.normal(0.5, 1, size=(15, 5))
    kernel = lambda x, y: polynomial_kernel(x, y, degree=3, gamma=1 / 5, coef0=1)  # noqa: E731
    aa, bb = kernel(a, a), kernel(b, b)
    expected = (
        sum(aa[i, j] for i in range(20) for j in range(20) if i != j) / (20 * 19)
        + sum(bb[i, j] for i in range(15) for j in range(15) if i != j) / (15 * 14)
        - 2 * kernel(a, b).mean()
    )
    value, (low, high) = kernel_distance(a, b)
    assert value == pytest.approx(expected, rel=1e-10)
    assert low < value < high


def test_kid_is_unbiased_and_its_interval_covers():
    random = np.random.default_rng(2)
    found = [kernel_distance(random.normal(size=(30, 4)), random.normal(size=(30, 4))) for _ in range(40)]
    values = np.array([value for value, _ in found])
    assert abs(values.mean()) < 2.5 * values.std() / np.sqrt(len(values))
    assert sum(low <= 0 <= high for _, (low, high) in found) >= 32


def test_bad_features_are_refused():
    good = np.ones((3, 2))
    for bad, message in [
        (np.ones((1, 2)), "two images on each side"),
        (np.ones((3, 4)), "dimensions"),
        (np.full((3, 2), np.nan), "NaN"),
    ]:
        with pytest.raises(DataError, match=message):
            frechet(bad, good)
        with pytest.raises(DataError, match=message):
            kernel_distance(good, bad)
