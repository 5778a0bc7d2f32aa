"""kid: kernel Inception distance over the retained classes (Binkowski et al., 2018), unbiased at any number of images.

The squared MMD of all images under the cubic kernel (x.y / 2048 + 1)^3, with a bootstrap interval.
"""

from __future__ import annotations

from erasure.evaluation.distances import kernel_distance
from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class KID(Metric):
    """Kernel Inception distance."""

    definition = "kid/1"
    higher_is_better = False
    needs = "inception"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Needs the Inception weights (`--inception`)."""
        drawn, reference = outputs.pair("inception")
        value, interval = kernel_distance(drawn, reference)
        return self.score(value, len(drawn), interval, **outputs.counted(reference))
