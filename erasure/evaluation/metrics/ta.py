"""ta: test accuracy, accuracy on the test split of the same data (Fan et al., 2024).

In evaluation mode, without augmentation. When a whole class was forgotten it is left out of the test split too.
"""

from __future__ import annotations

import numpy as np

from erasure.evaluation.metrics.base import ShareMetric
from erasure.evaluation.outputs import ModelOutputs


class TA(ShareMetric):
    """Test accuracy in percent."""

    definition = "ta/1"

    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """Which samples of the test split the classifier labels correctly."""
        return outputs.predictions("test").correct
