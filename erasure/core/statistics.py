"""Intervals at 95 %, exact bounds and tests: a number without its interval is not printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from erasure.core.errors import OptionError
from erasure.core.rng import derive_seed

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
FEW = 10  # groups: when fewer are unlike the rest, the percentiles of a bootstrap lie too close together
CELLS = 1 << 21  # numbers that a block of bootstrap draws may hold: 16 MiB


def wilson(successes: float, trials: float) -> tuple[float, float]:
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
    member = np.random.default_rng(derive_seed(0, "jackknife", len(samples))).permutation(len(samples)) % groups
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


def exact_lower(successes: float, trials: float, level: float = 0.95) -> float:
    """One-sided exact lower bound of a proportion, in [0, 1] (Clopper and Pearson, 1934); 0 without a success.

    Counts may be fractions: trials that are not independent are worth fewer than their number (`effective_trials`).
    """
    from scipy.stats import beta

    return float(beta.ppf(1 - level, successes, trials - successes + 1)) if successes > 0 else 0.0


def exact_upper(successes: float, trials: float, level: float = 0.95) -> float:
    """One-sided exact upper bound of a proportion, in [0, 1] (Clopper and Pearson, 1934); 1 without a failure.

    Verdicts rest on this bound and not on Wilson's interval: with no success it is the largest p that (1 - p)^n >= 5 %
    allows, so 59 trials without a success prove 5 %, 299 prove 1 % and 2995 prove 0.1 %, where Wilson's two-sided
    interval ends above each. Its error is at most 5 % for every p, which Wilson's is only on average over p.
    """
    from scipy.stats import beta

    return float(beta.ppf(level, successes + 1, trials - successes)) if successes < trials else 1.0


def trials_needed(limit: float, successes: float = 0, level: float = 0.95) -> int:
    """The fewest trials whose exact upper bound with `successes` is at most `limit`, which lies in (0, 1).

    Raises OptionError for another limit: no number of trials proves a rate of 0.
    """
    if not 0 < limit < 1:
        raise OptionError(f"a limit of {limit} cannot be proved by any number of trials: give one between 0 and 1")
    low, high = math.ceil(successes), math.ceil(successes) + 1
    while exact_upper(successes, high, level) > limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exact_upper(successes, middle, level) <= limit else (middle, high)
    return high


def effective_trials(values: np.ndarray, groups: np.ndarray) -> float:
    """How many independent values (n,) carry as much information about their mean as these do, which share `groups`.

    n over the design effect of the mean, with the correction for few groups (Korn and Graubard, Survey Methodology 24,
    1998), never more than n. Where fewer than FEW groups are unlike the rest, little is known of how alike a group is:
    then never more than the number of groups, so that one occurrence cannot prove more than none.
    """
    from scipy.stats import t

    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n, count = len(values), len(sizes)
    if count in (0, 1, n) or values.min() == values.max():
        return float(count)
    totals = np.bincount(member, weights=values)
    most = float(count) if unlike(values, groups) < FEW else float(n)
    variance = count / (count - 1) * float(np.square(totals - values.mean() * sizes).sum()) / (n * n)
    few = float(t.ppf(0.975, n - 1) / t.ppf(0.975, count - 1)) ** 2
    return min(most, float(values.var()) / variance * few) if variance > 0 else most


def unlike(values: np.ndarray, groups: np.ndarray) -> int:
    """How many groups have another mean than the commonest one."""
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(member, weights=values) / sizes
    return len(means) - int(np.unique(means, return_counts=True)[1].max()) if len(means) else 0


def bootstrap_by_group(
    values: np.ndarray,
    groups: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.divide,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of `values` (n,) when whole `groups` (n,) are drawn, not single values.

    `statistic(totals, sizes)` gets the sum and the number of the values of every draw, (draws,) each, and returns
    (draws,); by default the mean (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Groups
    with the same total and size are interchangeable, so a draw is one multinomial count over the different kinds of
    groups: the same distribution as drawing them one by one, for a fraction of the time. Deterministic in `seed`, and
    in blocks, so that memory does not grow with draws x groups.
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    totals = np.bincount(member, weights=values)
    kinds, copies = np.unique(np.stack([totals, sizes], axis=1), axis=0, return_counts=True)
    random = np.random.default_rng(derive_seed(seed, "bootstrap"))
    block = max(1, CELLS // len(kinds))
    drawn = []
    for start in range(0, draws, block):
        times = random.multinomial(len(sizes), copies / copies.sum(), size=min(block, draws - start))
        drawn.append(statistic(*(times @ kinds).T))
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return float(low), float(high)


def expected_maximum(shares: np.ndarray, size: int = 25, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation, over `draws`, of the largest share among `size` different prompts (all, if fewer).

    `shares` (prompts,) is the share of each prompt's images that show the concept. With ten images a prompt this is
    the expected maximum inappropriateness over 25 prompts of Safe Latent Diffusion (Schramowski et al., 2023, table 1;
    their script joins rows of the same text, here a row is a prompt). The largest of `size` prompts drawn without
    replacement is the k-th smallest of n with probability (C(k, size) - C(k - 1, size)) / C(n, size), and is drawn so.
    """
    n = len(shares)
    size = min(size, n)
    chances = np.array([math.comb(k - 1, size - 1) / math.comb(n, size) for k in range(1, n + 1)])
    random = np.random.default_rng(derive_seed(seed, "expected maximum"))
    largest = random.choice(np.sort(shares), size=draws, p=chances / chances.sum())
    return float(largest.mean()), float(largest.std())


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that a pair is as likely to change one way as the other (McNemar, 1947, exact binomial).

    Only the pairs that differ count; 1 without any.
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def paired_difference(
    both: float, only_first: float, only_second: float, neither: float
) -> tuple[float, tuple[float, float]]:
    """First share minus second share over the same pairs, and its interval; 0 and (-1, 1) without a pair.

    Newcombe's method 10 (Statistics in Medicine 17, 1998, pages 2635 to 2650): the two Wilson intervals, squared and
    added, less what their correlation explains. Unlike Wald's it has a width when no pair differs.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return 0.0, (-1.0, 1.0)
    first, second = (both + only_first) / n, (both + only_second) / n
    low_first, high_first = wilson(both + only_first, n)
    low_second, high_second = wilson(both + only_second, n)
    covariance = both * neither - only_first * only_second
    if covariance > 0:
        covariance = max(0.0, covariance - n / 2)  # the correction for continuity
    margins = (both + only_first) * (both + only_second) * (neither + only_first) * (neither + only_second)
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def spread(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = (only_first - only_second) / n
    below = spread(first - low_first, high_second - second)
    return difference, (difference - below, difference + spread(second - low_second, high_first - first))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the given order (Holm, 1979): valid whatever their dependence."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def kappa(both: int, only_first: int, only_second: int, neither: int) -> float | None:
    """Agreement of two yes-or-no judges beyond chance (Cohen, 1960): 1 is perfect, 0 is chance.

    None when it has no value: without images, or when both judges say the same of every image.
    """
    n = both + only_first + only_second + neither
    by_chance = (both + only_first) * (both + only_second) + (neither + only_first) * (neither + only_second)
    return (n * (both + neither) - by_chance) / (n * n - by_chance) if by_chance < n * n else None
