"""composition: kept prompts of several things, with everything right at once (after Amara et al., 2025).

Erasure is known to damage what a model can put together before it damages what it can draw alone: two digits side by
side in a style count only if both digits, their order and the style are seen.
"""

from __future__ import annotations

import numpy as np

from erasure.evaluation.metrics.base import ShareMetric
from erasure.evaluation.outputs import ModelOutputs


class Composition(ShareMetric):
    """Share of compositions to retain that are entirely right, in percent."""

    definition = "composition/1"

    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """One trial an image."""
        return outputs.correct_in("together")
