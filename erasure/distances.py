"""Distances between two sets of feature vectors, in float64."""

from __future__ import annotations

import numpy as np

from erasure.errors import DataError
from erasure.seeds import derive

KID_REPEATS = 1000


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to `first` (n, d) and `second` (m, d) (Heusel et al., 2017).

    |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). With S1 = A^T A and S2 = B^T B for the centred and scaled
    features, tr (S1 S2)^(1/2) is the nuclear norm of A B^T: exact, without the square root of a matrix.
    Raises DataError for fewer than two rows, other widths, or values that are not finite.
    """
    _check(first, second)
    one, two = _factor(first), _factor(second)
    shift = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
    cross = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    return float(max(0.0, shift @ shift + np.square(one).sum() + np.square(two).sum() - 2 * cross))


def _factor(features: np.ndarray) -> np.ndarray:
    """A with A^T A the covariance of `features` (n, d), at most d rows."""
    centred = (features - features.mean(0, dtype=np.float64)) / np.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return np.sqrt(values.clip(min=0))[:, None] * vectors.T


def kernel_distance(first: np.ndarray, second: np.ndarray) -> tuple[float, tuple[float, float]]:
    """KID (Binkowski et al., 2018) and its interval: the unbiased squared MMD of all rows under (x.y / d + 1)^3.

    The interval is a percentile bootstrap over rows; pairs of a row with its own copy are left out, which keeps each
    resampled estimate unbiased.
    """
    _check(first, second)
    size = first.shape[1]
    within_first, within_second, across = (
        (a.astype(np.float64) @ b.astype(np.float64).T / size + 1) ** 3
        for a, b in ((first, first), (second, second), (first, second))
    )
    np.fill_diagonal(within_first, 0.0)
    np.fill_diagonal(within_second, 0.0)
    ones = np.ones(len(first)), np.ones(len(second))
    value = _weighted_mmd(within_first, within_second, across, *ones)
    random = np.random.default_rng(derive(0, "kid", len(first), len(second)))
    n, m = len(first), len(second)
    drawn = [
        _weighted_mmd(
            within_first, within_second, across, random.multinomial(n, [1 / n] * n), random.multinomial(m, [1 / m] * m)
        )
        for _ in range(KID_REPEATS if n * m <= 1_000_000 else KID_REPEATS // 10)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return value, (float(low), float(high))


def _weighted_mmd(first: np.ndarray, second: np.ndarray, across: np.ndarray, w: np.ndarray, v: np.ndarray) -> float:
    """Unbiased MMD^2 with row weights; the diagonals of `first` and `second` are zero."""
    pairs_w, pairs_v = w.sum() ** 2 - np.square(w).sum(), v.sum() ** 2 - np.square(v).sum()
    if not pairs_w or not pairs_v:  # a resample of one row only has no pair
        return float("nan")
    return float(w @ first @ w / pairs_w + v @ second @ v / pairs_v - 2 * (w @ across @ v) / (w.sum() * v.sum()))


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if min(len(first), len(second)) < 2:
        raise DataError(f"a distance between sets needs two images on each side, got {len(first)} and {len(second)}")
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"features have {first.shape[1]} and {second.shape[1]} dimensions: use one network for both sides"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("features hold NaN or infinity")
