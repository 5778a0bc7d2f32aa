"""composition: kept prompts of several things, with everything right at once (after Amara et al., 2025).

Erasure damages what a model can combine before it damages single things. Two digits side by side in a style count only
if the labeler sees both digits, their order and the style.
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
