import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from scipy.stats import t as student
from sklearn.metrics import cohen_kappa_score

from erasure.core.errors import OptionError
from erasure.core.statistics import (
    bootstrap_by_group,
    effective_trials,
    exact_lower,
    exact_upper,
    expected_maximum,
    holm,
    jackknife_interval,
    kappa,
    mcnemar,
    mean_interval,
    over_seeds,
    paired_difference,
    trials_needed,
    wilson,
)


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


@pytest.mark.parametrize(("successes", "trials"), [(0, 59), (3, 98), (40, 41), (12, 12)])
def test_exact_bounds_are_scipys(successes, trials):
    above = binomtest(successes, trials, alternative="less").proportion_ci(0.95, method="exact").high
    below = binomtest(successes, trials, alternative="greater").proportion_ci(0.95, method="exact").low
    assert exact_upper(successes, trials) == pytest.approx(above, abs=1e-12)
    assert exact_lower(successes, trials) == pytest.approx(below, abs=1e-12)


@pytest.mark.parametrize(("limit", "trials"), [(0.05, 59), (0.01, 299), (0.001, 2995)])
def test_trials_that_prove_a_limit_without_an_event(limit, trials):
    assert trials_needed(limit) == trials
    assert 1 - (1 - limit) ** trials >= 0.95 > 1 - (1 - limit) ** (trials - 1)
    assert wilson(0, trials)[1] > limit  # why the verdict does not use it


@given(st.floats(0.002, 0.9), st.integers(0, 30))
def test_the_trials_needed_are_the_fewest(limit, successes):
    needed = trials_needed(limit, successes)
    assert exact_upper(successes, needed) <= limit < exact_upper(successes, needed - 1)


@pytest.mark.parametrize("limit", [0, 1, -0.1, 5])
def test_a_limit_that_nothing_proves_is_refused(limit):
    with pytest.raises(OptionError, match="between 0 and 1"):
        trials_needed(limit)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_binomial_test(one, other):
    assert mcnemar(one, other) == mcnemar(other, one)
    tail = sum(math.comb(one + other, k) for k in range(min(one, other) + 1)) / 2 ** (one + other)
    assert mcnemar(one, other) == pytest.approx(min(1, 2 * tail), rel=1e-9)


def test_paired_differences_are_the_published_ones():
    # Bentur et al. (2009) and Cavo et al. (2012), as Fagerland, Lydersen and Laake (2017), chapter 8, give them
    for cells, expected in (((1, 1, 7, 12), (-0.286, -0.507, -0.026)), ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046))):
        difference, interval = paired_difference(*cells)
        assert (difference, *interval) == pytest.approx(expected, abs=5e-4 if cells[0] == 1 else 5e-5)
    assert paired_difference(0, 0, 0, 0) == (0.0, (-1.0, 1.0))


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any))
def test_a_paired_interval_holds_its_difference_and_turns_with_it(cells):
    both, one, other, neither = cells
    difference, (low, high) = paired_difference(both, one, other, neither)
    assert -1 - 1e-9 <= low <= difference <= high <= 1 + 1e-9 and low < high
    turned, (turned_low, turned_high) = paired_difference(both, other, one, neither)
    assert (turned, turned_low, turned_high) == pytest.approx((-difference, -high, -low))


def test_single_values_as_groups_give_the_ordinary_bootstrap():
    values = np.random.default_rng(2).normal(size=300)
    assert bootstrap_by_group(values, np.arange(300)) == pytest.approx(mean_interval(values), abs=0.02)
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    assert bootstrap_by_group(values, np.arange(300)) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_bootstrap_draws_groups():
    values = np.random.default_rng(3).normal(size=200)
    alone, copied = np.arange(200), np.repeat(np.arange(200), 10)
    low, high = bootstrap_by_group(np.repeat(values, 10), copied)
    assert (low, high) == pytest.approx(bootstrap_by_group(values, alone), abs=0.01)  # copies bring no knowledge
    assert high - low > 2.5 * np.ptp(bootstrap_by_group(np.repeat(values, 10), np.arange(2000)))
    assert bootstrap_by_group(values, alone, seed=1) != bootstrap_by_group(values, alone, seed=2)
    doubled = bootstrap_by_group(values, alone, lambda totals, sizes: 2 * totals / sizes)
    assert doubled == pytest.approx([2 * end for end in bootstrap_by_group(values, alone)])


def test_a_bootstrap_in_blocks_is_the_bootstrap(monkeypatch):
    values, groups = np.random.default_rng(4).normal(size=90), np.repeat(np.arange(30), 3)
    whole = bootstrap_by_group(values, groups, draws=1000)
    monkeypatch.setattr("erasure.core.statistics.CELLS", 30 * 7)
    assert bootstrap_by_group(values, groups, draws=1000) == whole


def test_effective_trials():
    rows = np.repeat(np.arange(400), 5)
    random = np.random.default_rng(5)
    assert effective_trials(random.random(2000) < 0.3, np.arange(2000)) == 2000
    assert effective_trials(random.random(2000) < 0.3, rows) == pytest.approx(2000, rel=0.15)
    assert effective_trials((random.random(400) < 0.3)[rows], rows) == pytest.approx(400, rel=0.02)
    assert effective_trials(np.zeros(2000, dtype=bool), rows) == 400
    assert effective_trials(np.tile([1, 0, 0, 0, 0], 400), rows) == 400  # nothing known of how alike a prompt is
    for hits in range(1, 6):  # a few occurrences never prove more than none
        flags = np.arange(2000) % 500 == 0
        flags[: 5 * hits : 5] = True
        assert effective_trials(flags, rows) <= 400
    assert effective_trials(np.array([True, False]), np.array([7, 7])) == 1
    # Twelve pairs of [1, 1] and of [0, 0] each, and six mixed: variance over that of the mean, Student's 59 over 29.
    values, pairs = np.array([1, 1] * 12 + [0, 0] * 12 + [1, 0] * 6), np.repeat(np.arange(30), 2)
    by_hand = 0.25 / (30 / 29 * 24 / 60**2) * (2.00100 / 2.04523) ** 2
    assert effective_trials(values, pairs) == pytest.approx(by_hand, rel=1e-4)


def test_bounds_over_effective_trials_hold_in_clusters():
    random, held = np.random.default_rng(6), np.zeros(2, dtype=int)
    rows = np.repeat(np.arange(60), 10)
    for _ in range(300):
        flags = random.random(600) < random.beta(0.05, 1, 60)[rows]
        worth = effective_trials(flags, rows)
        held += (
            exact_lower(flags.mean() * worth, worth) <= 0.05 / 1.05,
            exact_upper(flags.mean() * worth, worth) >= 0.05 / 1.05,
        )
    assert (held >= 275).all()  # 95 % of 300 is 285, its standard deviation 4


def test_the_expected_maximum_is_the_closed_form():
    shares = np.random.default_rng(7).binomial(10, 0.2, 500) / 10
    grid = np.arange(11) / 10
    below = np.array([np.mean(shares <= value + 1e-9) for value in grid]) ** 25
    mean = float((grid * np.diff(below, prepend=0)).sum())
    deviation = math.sqrt(float((grid**2 * np.diff(below, prepend=0)).sum()) - mean**2)
    assert expected_maximum(shares) == pytest.approx((mean, deviation), abs=0.005)
    assert expected_maximum(np.array([0.4, 0.4])) == (pytest.approx(0.4), pytest.approx(0))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_its_steps_reject(p_values):
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), sorted(range(len(p_values)), key=p_values.__getitem__)
        for step, index in enumerate(order):
            if p_values[index] > level / (len(p_values) - step):
                break
            rejected.add(index)
        adjusted = holm(p_values)
        assert all(
            value == pytest.approx(level) or (value <= level) == (i in rejected) for i, value in enumerate(adjusted)
        )


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_kappa_is_scikit_learns(answers):
    first, second = np.array(answers).T
    cells = (first & second).sum(), (first & ~second).sum(), (~first & second).sum(), (~first & ~second).sum()
    ours = kappa(*map(int, cells))
    if len({*first, *second}) == 1:
        assert ours is None
    else:
        assert ours == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert kappa(0, 0, 0, 0) is None
