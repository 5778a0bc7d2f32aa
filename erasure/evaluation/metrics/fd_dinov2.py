"""fd_dinov2: Fréchet distance to the reference in the features of DINOv2 (Stein et al., 2023).

The formula is the FID's, the feature space is not: never compare it with an FID. Biased upwards in few images, as every
Fréchet distance is; the model is named by --dinov2, the paper's is `facebook/dinov2-large`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from erasure.evaluation.metrics.base import Score, SpaceMetric


class FDDINOv2(SpaceMetric):
    """Fréchet distance in DINOv2's class token."""

    definition = "fd_dinov2/1"
    needs = "dinov2"

    def distance(self, generated: np.ndarray, reference: np.ndarray, details: dict[str, Any]) -> Score:
        """The distance; its interval is a delete-a-group jackknife over the generated images."""
        return self.frechet(generated, reference, groups=10, **details)
