"""Membership inference: attacks on one classifier (an SVM on confidences, the loss AUC), and on many (U-LiRA, KLoM).

The latter compare predictions of unlearned models on a sample with those of models that were trained without it, at
least 16 of each. A sample's margin is log p / (1 - p) of its label's probability p: the logit-scaled confidence of LiRA
(Carlini et al., 2022), and, as log p - log(sum of the others' probabilities), the margin of KLoM.
"""

from __future__ import annotations

import math

import numpy as np

from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.rng import derive_seed
from erasure.core.statistics import Z


def called_non_members(
    members: np.ndarray, non_members: np.ndarray, forgotten: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Which of the `forgotten` confidences (n,) the attack calls non-members, (n,) booleans.

    A support vector machine (rbf kernel, C = 3, gamma = 1 as in the official code) separates the true-label confidences
    of members from those of non-members, equally many of each, chosen by `seed`. Where all confidences are equal, every
    prediction is a tie, and ties count as members. Raises NotApplicableError when a side is empty.
    """
    from sklearn.svm import SVC

    for name, values in (("retained", members), ("test", non_members), ("forgotten", forgotten)):
        if not len(values):
            raise NotApplicableError(f"the attack on membership needs {name} samples: there are none")
    count = min(len(members), len(non_members))
    random = np.random.default_rng(derive_seed(seed, "membership"))
    sides = [random.choice(values, count, replace=False) for values in (members, non_members)]
    inside = np.repeat([1, 0], count)
    if np.ptp(np.concatenate(sides)) == 0:
        return np.zeros(len(forgotten), dtype=bool)
    attack = SVC(C=3.0, kernel="rbf", gamma=1.0).fit(np.concatenate(sides)[:, None], inside)
    return attack.predict(forgotten[:, None]) == 0


def loss_auc(forgotten: np.ndarray, test: np.ndarray) -> tuple[float, tuple[float, float]]:
    """How often a test sample's loss is above a forgotten one's, in [0, 1], and its interval; ties count half.

    At 0.5 the losses say nothing. Above it, forgotten samples still look like members; below it, they look stranger
    than samples that were never seen. The area under the ROC curve; its variance is DeLong's (Biometrics 44, 1988).
    Raises NotApplicableError when a side is empty.
    """
    from scipy.stats import rankdata

    m, n = len(forgotten), len(test)
    if not m or not n:
        raise NotApplicableError("loss_auc needs forgotten and test samples: there are none on one side")
    together = rankdata(np.concatenate([forgotten, test]))
    above = 1 - (together[:m] - rankdata(forgotten)) / n  # of each forgotten sample: the share of test losses above it
    below = (together[m:] - rankdata(test)) / m
    value = float(below.mean())
    if min(m, n) < 2:
        return value, (-math.inf, math.inf)
    half = Z * math.sqrt(float(above.var(ddof=1)) / m + float(below.var(ddof=1)) / n)
    return value, (max(0.0, value - half), min(1.0, value + half))


FEWEST = 4  # models a side: a variance of three is what a fit without one of them has
BINS, LIMIT, SMALLEST = 20, 100.0, 1e-5


def u_lira(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """How often a likelihood-ratio attack is right about a sample, (n,) in percent; 50 is ideal.

    From margins (models, n) of unlearned and of retrained models it must say which of the two a model is. For every
    sample it fits a normal distribution to each side (U-LiRA; Kurmanji et al., 2023, and Hayes et al., 2024) and
    chooses the likelier one. The models under attack, one of each side at a time, are left out of both fits, so that
    it is right half of the time when both sides are alike. An undecided case counts half.
    Raises OptionError for sides of unequal size, or fewer than four models.
    """
    _check(unlearned, retrained)
    right = np.zeros(unlearned.shape[1])
    for i in range(len(unlearned)):
        fits = [_normal(np.delete(side, i, axis=0)) for side in (unlearned, retrained)]
        for own, margins in enumerate((unlearned[i], retrained[i])):
            ratio = _log_density(margins, *fits[own]) - _log_density(margins, *fits[1 - own])
            right += np.where(ratio == 0, 0.5, ratio > 0)
    return 100.0 * right / (2 * len(unlearned))


def klom(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """KL divergence of margins of unlearned (models, n) from those of retrained models, (n,) in nats; 0 is ideal.

    KLoM (Georgiev et al., 2024, appendix E.1): margins clipped to [-100, 100], both sides in 20 equal bins over their
    common range, KL(unlearned || retrained), where an empty bin of the retrained side counts as 1e-5.
    With few models it is far from 0 even between two sets of retrained ones: read it beside theirs.
    Raises OptionError for sides of unequal size, or fewer than four models.
    """
    _check(unlearned, retrained)
    sides = np.clip(np.stack([unlearned, retrained]), -LIMIT, LIMIT)
    low = sides.min(axis=(0, 1))
    width = (sides.max(axis=(0, 1)) - low) / BINS
    bins = np.minimum((sides - low) / np.where(width > 0, width, 1), BINS - 1).astype(int)
    p, q = ((side[..., None] == np.arange(BINS)).mean(axis=0) for side in bins)
    ratio = np.log(np.where(p > 0, p, 1) / np.where(q > 0, q, SMALLEST))
    return (p * ratio).sum(axis=1)


def _check(unlearned: np.ndarray, retrained: np.ndarray) -> None:
    if unlearned.shape != retrained.shape or len(unlearned) < FEWEST:
        raise OptionError(
            f"{len(unlearned)} unlearned and {len(retrained)} retrained models: as many of each are needed, at least "
            f"{FEWEST}, and 16 for numbers worth reading (--models 16)"
        )


def _normal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every column of (models, n), each (n,)."""
    return values.mean(axis=0), values.var(axis=0, ddof=1) + np.finfo(np.float64).tiny


def _log_density(value: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return -0.5 * (np.log(2 * math.pi * variance) + np.square(value - mean) / variance)
