"""fd_classifier: Fréchet distance to real images of kept classes in a classifier's features (Heusel et al., 2017).

The formula is the FID's, the feature space is not: never compare it with an FID. `n_real` real training images stand on
the other side; the interval is a delete-a-group jackknife over the generated ones.
"""

from __future__ import annotations

from erasure.evaluation.metrics.base import FrechetMetric, Score
from erasure.evaluation.outputs import ModelOutputs


class FDClassifier(FrechetMetric):
    """Fréchet distance in the classifier's pooled features."""

    definition = "fd_classifier/1"

    def measure(self, outputs: ModelOutputs) -> Score:
        """The distance over the retained classes; damage to what should be kept shows here first."""
        generated, reference = outputs.features("retain"), outputs.reference_features("retain")
        return self.frechet(generated, reference, groups=20, **outputs.counted(reference))
