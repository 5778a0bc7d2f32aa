"""cmmd: squared MMD of CLIP's image embeddings to those of the reference, unbiased (after Jayasumana et al., 2024).

Unit embeddings under a Gaussian kernel of width 10, times 1000, as in the paper; the estimator is not the paper's,
which counts each image with itself and is above 0 for equal distributions (0.11 at 50 images a side). Between equal
ones ours is 0 on average, so it can be negative. Compare numbers of one model only, named by --clip; the paper's is
`openai/clip-vit-large-patch14-336`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from erasure.evaluation.distances import gaussian, kernel_distance
from erasure.evaluation.metrics.base import Score, SpaceMetric

SCALE = 1000


class CMMD(SpaceMetric):
    """CLIP maximum mean discrepancy."""

    definition = "cmmd/1"
    needs = "clip"

    def distance(self, generated: np.ndarray, reference: np.ndarray, details: dict[str, Any]) -> Score:
        """The squared MMD times 1000, with a bootstrap interval."""
        value, (low, high) = kernel_distance(generated, reference, gaussian, "cmmd")
        return self.score(SCALE * value, len(generated), (SCALE * low, SCALE * high), **details)
