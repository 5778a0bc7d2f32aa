"""A representative subset of samples by joint entropy, which a greedy choice approximates within 1 - 1/e.

Samples are taken as values of a Gaussian process over images, observed with noise: the joint entropy of a subset is
half the log-determinant of its kernel matrix, up to a constant, and the next sample of a greedy choice is the one whose
variance, given those already chosen, is largest (Ko et al., 1995). Cholesky rows are added one by one (Chen et al.,
2018), so no determinant is ever computed.
"""

from __future__ import annotations

import numpy as np

NOISE = 1e-2  # variance of the noise: copies of one image add next to nothing, and no pivot is zero


def kernel(points: np.ndarray) -> np.ndarray:
    """Gaussian kernel (n, n) of points (n, d) in [-1, 1], plus noise; its width hangs on d alone, never on the data."""
    squares = (points**2).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0.0)
    return np.exp(-distances / (0.5 * points.shape[1])) + NOISE * np.eye(len(points))


def representatives(points: np.ndarray, count: int) -> np.ndarray:
    """Positions (count,), in order, of a greedily chosen subset of `points` (n, d) with a large joint entropy.

    Of equal gains the first position wins.
    """
    matrix = kernel(points)
    variance = matrix.diagonal().copy()  # of each point, given those chosen so far
    rows = np.empty((count, len(points)))
    chosen: list[int] = []
    for i in range(count):
        best = int(np.argmax(variance))
        row = (matrix[best] - rows[:i, best] @ rows[:i]) / np.sqrt(variance[best])
        rows[i] = row
        variance -= row**2
        chosen.append(best)
        variance[chosen] = -np.inf
    return np.sort(np.array(chosen, dtype=np.int64))
