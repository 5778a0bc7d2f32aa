"""Distances between two sets of feature vectors, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from erasure.core.errors import DataError, NotApplicableError
from erasure.core.rng import derive_seed

REPEATS = 1000  # resamples of a bootstrap; a tenth of them where a kernel has more than PAIRS entries
PAIRS = 1_000_000
ROWS = 256  # of a kernel at once: beside 10,000 others they take 20 MiB, the whole of it 800

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to `first` (n, d) and `second` (m, d) (Heusel et al., 2017).

    |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). With S1 = A^T A and S2 = B^T B for the centred and scaled
    features, tr (S1 S2)^(1/2) is the nuclear norm of A B^T: exact, without the square root of a matrix.
    Raises NotApplicableError for fewer than two rows, DataError for other widths, or values that are not finite.
    """
    return frechet_to(second)(first)


def frechet_to(second: np.ndarray) -> Callable[[np.ndarray], float]:
    """`frechet` as a function of its first side alone: what it needs of `second` is computed once."""
    _check(second, second)
    two, mean = _factor(second), second.mean(0, dtype=np.float64)

    def distance(first: np.ndarray) -> float:
        _check(first, second)
        one, shift = _factor(first), first.mean(0, dtype=np.float64) - mean
        cross = np.linalg.svd(one @ two.T, compute_uv=False).sum()
        return float(max(0.0, shift @ shift + np.square(one).sum() + np.square(two).sum() - 2 * cross))

    return distance


def _factor(features: np.ndarray) -> np.ndarray:
    """A with A^T A the covariance of `features` (n, d), at most d rows."""
    centred = (features - features.mean(0, dtype=np.float64)) / np.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return np.sqrt(values.clip(min=0))[:, None] * vectors.T


def cubic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(x.y / d + 1)^3, the kernel of the KID (Binkowski et al., 2018), of every pair of rows, (n, m)."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def gaussian(first: np.ndarray, second: np.ndarray, sigma: float = 10.0) -> np.ndarray:
    """exp(-|x - y|^2 / (2 sigma^2)), the kernel of the CMMD (Jayasumana et al., 2024), of every pair, (n, m)."""
    apart = np.square(first).sum(1)[:, None] + np.square(second).sum(1) - 2 * first @ second.T
    return np.exp(-apart.clip(min=0) / (2 * sigma * sigma))


def kernel_distance(
    first: np.ndarray, second: np.ndarray, kernel: Kernel = cubic, name: str = "kid"
) -> tuple[float, tuple[float, float]]:
    """The unbiased squared MMD of all rows under `kernel` (Gretton et al., 2012, eq. 3), and its interval.

    The interval is a percentile bootstrap over rows, seeded by `name`; pairs of a row with its own copy are left out,
    which keeps each resampled estimate unbiased. Kernels are computed in parts, so memory
    grows with n + m, not n x m.
    """
    _check(first, second)
    a, b = first.astype(np.float64), second.astype(np.float64)
    w, v = _resampled(len(a), len(b), name)
    pairs_w, pairs_v = (np.square(times.sum(1)) - np.square(times).sum(1) for times in (w, v))
    # A resample of one row only has no pair, and no estimate.
    pairs_w, pairs_v = (np.where(pairs > 0, pairs, np.nan) for pairs in (pairs_w, pairs_v))
    across = _weighted(kernel, a, b, w, v) / (len(a) * len(b))
    estimates = _weighted(kernel, a, a, w, w) / pairs_w + _weighted(kernel, b, b, v, v) / pairs_v - 2 * across
    low, high = np.nanquantile(estimates[1:], [0.025, 0.975])
    return float(estimates[0]), (float(low), float(high))


def _resampled(n: int, m: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """How often each row of both sides is counted, (draws, n) and (draws, m): first once each, then by resampling."""
    random = np.random.default_rng(derive_seed(0, name, n, m))
    draws = 1 + (REPEATS if n * m <= PAIRS else REPEATS // 10)
    w, v = np.ones((draws, n)), np.ones((draws, m))
    for i in range(1, draws):
        w[i], v[i] = random.multinomial(n, [1 / n] * n), random.multinomial(m, [1 / m] * m)
    return w, v


def _weighted(kernel: Kernel, a: np.ndarray, b: np.ndarray, w: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Sum of w_i k(a_i, b_j) v_j for each draw, (draws,); where both sides are one, without i = j."""
    total = np.zeros(len(w))
    for start in range(0, len(a), ROWS):
        part = kernel(a[start : start + ROWS], b)
        if a is b:
            own = np.arange(len(part))
            part[own, start + own] = 0.0
        total += ((w[:, start : start + ROWS] @ part) * v).sum(1)
    return total


def need_two(n: int, m: int) -> None:
    """Raise NotApplicableError unless there are two images on each side: one has no spread."""
    if min(n, m) < 2:
        raise NotApplicableError(f"a distance between sets needs two images on each side, got {n} and {m}")


def _check(first: np.ndarray, second: np.ndarray) -> None:
    need_two(len(first), len(second))
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"features have {first.shape[1]} and {second.shape[1]} dimensions: use one network for both sides"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("features hold NaN or infinity")
