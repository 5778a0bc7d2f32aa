"""fid: Fréchet Inception distance over the retained classes (Heusel et al., 2017), with the original Inception weights.

Images are resized to 299 x 299 (bicubic, antialiased, in float) and embedded in 2048 dimensions; statistics are in
float64. Below 2048 images a side it is biased upwards, so the KID, which is not, stands among its details.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from erasure.evaluation.distances import kernel_distance
from erasure.evaluation.metrics.base import Score, SpaceMetric

ENOUGH = 2048  # the width of the features: with fewer images their covariance has no full rank


class FID(SpaceMetric):
    """Fréchet Inception distance."""

    definition = "fid/1"
    needs = "inception"

    def distance(self, generated: np.ndarray, reference: np.ndarray, details: dict[str, Any]) -> Score:
        """The distance, and the KID in `details` where there are too few images."""
        if min(len(generated), len(reference)) < ENOUGH:
            value, interval = kernel_distance(generated, reference)
            details |= {"kid": value, "kid_interval": list(interval)}
        return self.frechet(generated, reference, groups=10, **details)
