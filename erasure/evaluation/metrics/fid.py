"""fid: Fréchet Inception distance over the retained classes (Heusel et al., 2017), with the original Inception weights.

Images are resized to 299 x 299 (bicubic, antialiased, in float) and embedded in 2048 dimensions; statistics are in
float64. Below 2048 images a side it is biased upwards, so the KID, which is not, stands among its details.
"""

from __future__ import annotations

from typing import Any

from erasure.evaluation.distances import kernel_distance
from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs

ENOUGH = 2048  # the width of the features: with fewer images their covariance has no full rank


class FID(Metric):
    """Fréchet Inception distance."""

    definition = "fid/1"
    higher_is_better = False
    needs = "inception"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Needs the Inception weights (`--inception`)."""
        drawn, reference = outputs.pair("inception")
        details: dict[str, Any] = outputs.counted(reference)
        if min(len(drawn), len(reference)) < ENOUGH:
            value, interval = kernel_distance(drawn, reference)
            details |= {"kid": value, "kid_interval": list(interval)}
        return self.frechet(drawn, reference, groups=10, **details)
