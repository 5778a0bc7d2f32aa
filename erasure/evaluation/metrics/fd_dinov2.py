"""fd_dinov2: Fréchet distance to the reference in the features of DINOv2 (Stein et al., 2023).

The formula is the FID's, the feature space is not: never compare it with an FID. Biased upwards in few images, as every
Fréchet distance is; the model is named by --dinov2, the paper's is `facebook/dinov2-large`.
"""

from __future__ import annotations

from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class FDDINOv2(Metric):
    """Fréchet distance in DINOv2's class token."""

    definition = "fd_dinov2/1"
    higher_is_better = False
    needs = "dinov2"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Needs a DINOv2 (`--dinov2`); the interval is a delete-a-group jackknife over the drawn images."""
        drawn, reference = outputs.pair("dinov2")
        details = {**outputs.counted(reference), "model": outputs.config.dinov2}
        return self.frechet(drawn, reference, groups=10, **details)
