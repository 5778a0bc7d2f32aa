"""ua: unlearning accuracy, 100 - accuracy on what was to be forgotten (Fan et al., 2024).

For a generator: images generated for a forgotten class, labeled by a frozen classifier; for prompts that name several
things, the forgotten one anywhere in the image. For a classifier: its own predictions on the forget set.
`given_original` counts only those that the original model gets right from the same seed or image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from erasure.evaluation.metrics.base import ShareMetric
from erasure.evaluation.outputs import ModelOutputs


class UA(ShareMetric):
    """Unlearning accuracy in percent."""

    definition = "ua/2"

    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """Which of the forget part is not recognised as its class."""
        return ~outputs.correct("forget")

    def details(self, outputs: ModelOutputs, hits: np.ndarray) -> Mapping[str, Any]:
        """The same over those that the original model got right."""
        if outputs.original is None:
            return {}
        before = outputs.original.correct("forget")
        given = 100.0 * float(hits[before].mean()) if before.any() else None
        return {"given_original": given, "n_given_original": int(before.sum())}
