import tracemalloc

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from erasure.core.errors import DataError, NotApplicableError
from erasure.evaluation import distances
from erasure.evaluation.distances import frechet, frechet_to, gaussian, kernel_distance


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


def test_one_side_prepared_once_gives_the_same_distance():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(30, 8)), random.normal(1, 2, size=(40, 8))
    distance = frechet_to(b)
    assert distance(a) == frechet(a, b) and distance(a[:9]) == frechet(a[:9], b) != distance(a)


def cubic(x, y):
    return polynomial_kernel(x, y, degree=3, gamma=1 / x.shape[1], coef0=1)


def wide(x, y):
    return rbf_kernel(x, y, gamma=1 / (2 * 10**2))


@pytest.mark.parametrize(("kernel", "reference"), [(distances.cubic, cubic), (gaussian, wide)])
def test_an_mmd_equals_the_brute_force_sum(kernel, reference, monkeypatch):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(20, 5)), random.normal(0.5, 1, size=(15, 5))
    aa, bb = reference(a, a), reference(b, b)
    expected = (
        sum(aa[i, j] for i in range(20) for j in range(20) if i != j) / (20 * 19)
        + sum(bb[i, j] for i in range(15) for j in range(15) if i != j) / (15 * 14)
        - 2 * reference(a, b).mean()
    )
    value, (low, high) = kernel_distance(a, b, kernel)
    assert value == pytest.approx(expected, rel=1e-10)
    assert low < value < high
    monkeypatch.setattr(distances, "ROWS", 7)  # the kernel in parts
    assert kernel_distance(a, b, kernel) == (pytest.approx(value), pytest.approx((low, high)))


def test_fid_and_kid_are_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    random = np.random.default_rng(0)
    a, b = random.normal(size=(60, 12)), random.normal(0.3, 1.5, size=(60, 12))
    network = torch.nn.Identity()  # the images are their features
    network.num_features = 12
    fid, kid = FrechetInceptionDistance(network), KernelInceptionDistance(network, subsets=1, subset_size=60)
    for metric in (fid, kid):
        metric.set_dtype(torch.float64)
        metric.update(torch.from_numpy(b), real=True)
        metric.update(torch.from_numpy(a), real=False)
    assert frechet(a, b) == pytest.approx(float(fid.compute()), rel=1e-6)
    assert kernel_distance(a, b)[0] == pytest.approx(float(kid.compute()[0]), rel=1e-6)


def test_between_equal_distributions_cmmd_is_zero_where_the_papers_is_not():
    random = np.random.default_rng(0)
    ours, papers = [], []
    for _ in range(60):
        a, b = (random.normal(size=(50, 32)) for _ in range(2))
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        ours.append(1000 * kernel_distance(a, b, gaussian)[0])
        papers.append(1000 * (gaussian(a, a).mean() + gaussian(b, b).mean() - 2 * gaussian(a, b).mean()))
    # 1 - k(x, y) of unit vectors is about 1 / sigma^2, and the paper's misses it in n of n^2 pairs on either side.
    assert np.mean(papers) == pytest.approx(1000 * 2 / 100 / 50, rel=0.05)
    assert abs(np.mean(ours)) < 2.5 * np.std(ours) / np.sqrt(60) < 0.1 * np.mean(papers)


def test_the_mmd_of_two_gaussians_has_its_closed_form():
    """E k(x, y) = (s^2 / (s^2 + 2))^(d / 2) exp(-|m|^2 / (2 (s^2 + 2))) for unit normals whose means are m apart."""
    random, sigma, d, shift = np.random.default_rng(0), 10.0, 3, 4.0
    a, b = random.normal(size=(2000, d)), random.normal((shift, 0, 0), size=(2000, d))
    whole = (sigma**2 / (sigma**2 + 2)) ** (d / 2)
    expected = 2 * whole * (1 - np.exp(-(shift**2) / (2 * (sigma**2 + 2))))
    value, (low, high) = kernel_distance(a, b, gaussian)
    assert value == pytest.approx(expected, rel=0.05) and low < expected < high


def test_a_kernel_of_many_images_is_never_held_whole():
    a = np.random.default_rng(0).normal(size=(4000, 4))
    tracemalloc.start()
    kernel_distance(a, a + 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4000 * 8 / 2


def test_kid_is_unbiased_and_its_interval_covers():
    random = np.random.default_rng(2)
    found = [kernel_distance(random.normal(size=(30, 4)), random.normal(size=(30, 4))) for _ in range(40)]
    values = np.array([value for value, _ in found])
    assert abs(values.mean()) < 2.5 * values.std() / np.sqrt(len(values))
    assert sum(low <= 0 <= high for _, (low, high) in found) >= 32


def test_bad_features_are_refused():
    good = np.ones((3, 2))
    for bad, message in [
        (np.ones((3, 4)), "dimensions"),
        (np.full((3, 2), np.nan), "NaN"),
    ]:
        with pytest.raises(DataError, match=message):
            frechet(bad, good)
        with pytest.raises(DataError, match=message):
            kernel_distance(good, bad)
    for few in (np.ones((1, 2)), np.ones((0, 2))):
        for measure in (frechet, kernel_distance):
            with pytest.raises(NotApplicableError, match="two images on each side"):
                measure(few, good)
            with pytest.raises(NotApplicableError, match="two images on each side"):
                measure(good, few)
