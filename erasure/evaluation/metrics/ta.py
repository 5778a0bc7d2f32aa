"""ta: test accuracy, accuracy on the test split of the same data (Fan et al., 2024).

In evaluation mode, without augmentation. When a whole class was forgotten it is left out of the test split too.
"""

from __future__ import annotations

from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class TA(Metric):
    """Test accuracy in percent."""

    definition = "ta/1"
    higher_is_better = True
    unit = "%"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Share of the test split that a classifier labels rightly."""
        return self.share(outputs.predictions("test").correct)
