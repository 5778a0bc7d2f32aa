"""paired_distance: how far kept images moved from the original's of the same seeds (after LPIPS, Zhang et al., 2018).

The mean Euclidean distance of features between two images that share seed and noise: a frozen classifier's pooled
features, or those named in `space`. There is no sampling noise between the two, so it shows small damage in few images.
"""

from __future__ import annotations

import numpy as np

from erasure.core.statistics import mean_interval
from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class PairedDistance(Metric):
    """Mean feature distance to the original's image from the same seed; 0 means nothing kept has changed."""

    definition = "paired_distance/1"
    higher_is_better = False

    def measure(self, outputs: ModelOutputs) -> Score:
        """The mean over the retained classes (all samples of an unconditional model)."""
        first, second, space = outputs.paired_features()
        distances = np.linalg.norm(first - second, axis=1)
        return self.score(float(distances.mean()), len(distances), mean_interval(distances), space=space)
