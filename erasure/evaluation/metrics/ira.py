"""ira: in-domain retain accuracy, what is kept of the erased kind (UnlearnCanvas, Zhang et al., 2024).

Images of retain prompts, labeled in the domains that something was erased from: other digits when a digit is erased.
"""

from __future__ import annotations

import numpy as np

from erasure.evaluation.metrics.base import ShareMetric
from erasure.evaluation.outputs import ModelOutputs


class IRA(ShareMetric):
    """In-domain retain accuracy in percent."""

    definition = "ira/1"

    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """Which values to retain the labeler sees; prompts of several things are left to `composition`."""
        return outputs.correct_in("domain")
