"""kid: kernel Inception distance over the retained classes (Binkowski et al., 2018), unbiased at any number of images.

The squared MMD of all images under the cubic kernel (x.y / 2048 + 1)^3, with a bootstrap interval.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from erasure.evaluation.distances import kernel_distance
from erasure.evaluation.metrics.base import Score, SpaceMetric


class KID(SpaceMetric):
    """Kernel Inception distance."""

    definition = "kid/1"
    needs = "inception"

    def distance(self, generated: np.ndarray, reference: np.ndarray, details: dict[str, Any]) -> Score:
        """The squared MMD under the cubic kernel, with a bootstrap interval."""
        value, interval = kernel_distance(generated, reference)
        return self.score(value, len(generated), interval, **details)
