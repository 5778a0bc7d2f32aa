"""Membership: can an attacker tell what a classifier was trained on? The attack of Fan et al. (2024), and a loss AUC.

The attack is one for all samples (a "population" attack): it learns from members (retained samples) and non-members
(test samples) what confidence gives a member away, and is then shown the forgotten samples. Attacks that learn about
each sample apart are stronger and need many models: see many_models.py.
"""

from __future__ import annotations

import math

import numpy as np

from erasure.errors import NotApplicableError
from erasure.seeds import derive
from erasure.statistics import Z


def called_non_members(
    members: np.ndarray, non_members: np.ndarray, forgotten: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Which of the `forgotten` confidences (n,) the attack calls non-members, (n,) booleans.

    A support vector machine (rbf kernel, C = 3, gamma = 1 as in the official code) separates the true-label confidences
    of members from those of non-members, equally many of each, chosen by `seed`. Where it cannot tell the two sides
    apart at all, every answer is a tie, and ties count as members. Raises NotApplicableError when a side is empty.
    """
    from sklearn.svm import SVC

    for name, values in (("retained", members), ("test", non_members), ("forgotten", forgotten)):
        if not len(values):
            raise NotApplicableError(f"the attack on membership needs {name} samples: there are none")
    count = min(len(members), len(non_members))
    random = np.random.default_rng(derive(seed, "membership"))
    sides = [random.choice(values, count, replace=False) for values in (members, non_members)]
    inside = np.repeat([1, 0], count)
    if np.ptp(np.concatenate(sides)) == 0:
        return np.zeros(len(forgotten), dtype=bool)
    attack = SVC(C=3.0, kernel="rbf", gamma=1.0).fit(np.concatenate(sides)[:, None], inside)
    return attack.predict(forgotten[:, None]) == 0


def loss_auc(forgotten: np.ndarray, test: np.ndarray) -> tuple[float, tuple[float, float]]:
    """How often a test sample's loss is above a forgotten one's, in [0, 1], and its interval; ties count half.

    0.5: the losses say nothing. Above it, forgotten samples still look like members; below it, they look stranger than
    samples that were never seen. The area under the ROC curve; its variance is DeLong's (Biometrics 44, 1988).
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
