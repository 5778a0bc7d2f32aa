"""A count, a share or a comparison of yes-or-no answers as audit.json has it, each with its interval and its method."""

from __future__ import annotations

from typing import Any

import numpy as np

from erasure.statistics import (
    FEW,
    bootstrap_by_group,
    effective_trials,
    exact_lower,
    exact_upper,
    mcnemar,
    paired_difference,
    unlike,
    wilson,
)


def share_of(flags: np.ndarray, rows: np.ndarray, seed: int) -> dict[str, Any]:
    """n, share and interval of `flags` (n,); images of one row of `rows` (n,) are not taken for independent.

    Wilson's interval for one image a prompt. For several, the bootstrap over prompts; where fewer than 10 prompts are
    unlike the rest its ends mean nothing (without an occurrence it is [0, 0]), so the exact interval over the trials
    that these images are worth takes its place.
    """
    n, count = len(flags), int(flags.sum())
    if len(np.unique(rows)) == n:
        interval, method = wilson(count, n), "wilson"
    elif unlike(flags, rows) >= FEW:
        interval, method = bootstrap_by_group(flags, rows, seed=seed), "bootstrap by prompt"
    else:
        trials = effective_trials(flags, rows)
        worth = count * trials / n
        interval, method = (exact_lower(worth, trials, 0.975), exact_upper(worth, trials, 0.975)), "exact by prompt"
    value = count / n if n else None
    return {"n": n, "value": value, "interval": list(interval), "interval_method": method}


def cells_of(first: np.ndarray, second: np.ndarray) -> tuple[int, int, int, int]:
    """How many of two flags (n,) are both, only the first, only the second and neither."""
    both, one, other = int((first & second).sum()), int((first & ~second).sum()), int((~first & second).sum())
    return both, one, other, len(first) - both - one - other


def paired_of(model: np.ndarray, base: np.ndarray, rows: np.ndarray, seed: int) -> dict[str, Any]:
    """The two models on the same images (n,): McNemar's exact test, and Newcombe's interval of model minus base.

    With several images a prompt the test is the exact sign test over prompts (does the model show more images of this
    prompt than the base, or fewer?), and the interval the bootstrap over prompts, or Newcombe's over the trials that
    the pairs are worth where fewer than 10 prompts are unlike the rest.
    """
    both, only_model, only_base, neither = cells = cells_of(model, base)
    change = model.astype(np.float64) - base
    difference, interval = paired_difference(*cells)
    _, member = np.unique(rows, return_inverse=True)
    by_prompt = np.bincount(member, weights=change)
    more, fewer = int((by_prompt > 0).sum()), int((by_prompt < 0).sum())
    test, method = "mcnemar", "newcombe"
    if len(by_prompt) < len(rows):
        test, method = "sign test by prompt", "bootstrap by prompt"
        if unlike(change, rows) >= FEW:
            interval = bootstrap_by_group(change, rows, seed=seed)
        else:
            worth = effective_trials(change, rows) / len(rows)
            interval, method = paired_difference(*(cell * worth for cell in cells))[1], "newcombe by prompt"
    return {
        "n": len(rows),
        "both": both,
        "only_base": only_base,
        "only_model": only_model,
        "neither": neither,
        "p_value": mcnemar(more, fewer),
        "difference": difference,
        "interval": list(interval),
        "interval_method": method,
        "test": test,
    }
