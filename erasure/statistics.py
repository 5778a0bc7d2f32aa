"""Intervals at 95 %: a number without one is not printed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from erasure.seeds import derive

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval for a proportion, in [0, 1] (Wilson, 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + Z * Z / (2 * trials)
    spread = Z * math.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    scale = 1 + Z * Z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Normal interval for the mean of independent values (n,)."""
    half = Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()) - half, float(values.mean()) + half


def jackknife_interval(
    samples: np.ndarray, statistic: Callable[[np.ndarray], float], groups: int = 20
) -> tuple[float, float]:
    """Normal interval of `statistic(samples)` from the delete-a-group jackknife (Quenouille, 1956; Shao and Tu, 1995).

    `samples` (n, d) are independent rows in any order. Unlike the bootstrap it repeats no row, so a Fréchet distance,
    whose bias depends on how many different rows there are, is not shifted.
    """
    groups = min(groups, len(samples))
    member = np.random.default_rng(derive(0, "jackknife", len(samples))).permutation(len(samples)) % groups
    left_out = np.array([statistic(samples[member != group]) for group in range(groups)])
    half = Z * math.sqrt((groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum()))
    value = statistic(samples)
    return value - half, value + half


def over_seeds(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Mean over runs with different seeds, and its Student-t interval."""
    from scipy.stats import t

    array = np.array(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), (-math.inf, math.inf)
    half = float(t.ppf(0.975, len(array) - 1)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()), (float(array.mean()) - half, float(array.mean()) + half)
