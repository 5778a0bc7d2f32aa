"""composition: kept prompts of several things, with everything right at once (after Amara et al., 2025).

Erasure is known to damage what a model can put together before it damages what it can draw alone: two digits side by
side in a style count only if both digits, their order and the style are seen.
"""

from __future__ import annotations

from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class Composition(Metric):
    """Share of kept compositions that are entirely right, in percent."""

    definition = "composition/1"
    higher_is_better = True
    unit = "%"

    def measure(self, outputs: ModelOutputs) -> Score:
        """One trial an image."""
        return self.share(outputs.correct_in("together"))
