"""cra: cross-domain retain accuracy, what is kept of other kinds (UnlearnCanvas, Zhang et al., 2024).

All prompts count, in the domains that nothing was erased from (styles when a digit is erased). Of forget prompts, all
else that they show and that was not erased counts too: a seven in an erased style must still be a seven.
"""

from __future__ import annotations

import numpy as np

from erasure.evaluation.metrics.base import ShareMetric
from erasure.evaluation.outputs import ModelOutputs


class CRA(ShareMetric):
    """Cross-domain retain accuracy in percent."""

    definition = "cra/1"

    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """Which of those values the labeler sees; prompts of several things are left to `composition`."""
        return outputs.correct_in("across")
