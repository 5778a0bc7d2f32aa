"""fid: Fréchet Inception distance over the retained classes (Heusel et al., 2017), with the original Inception weights.

Images are resized to 299 x 299 (bicubic, antialiased, in float) and embedded in 2048 dimensions; statistics are in
float64. Below 2048 images a side it is biased upwards: look at `kid` beside it.
"""

from __future__ import annotations

from erasure.distances import frechet
from erasure.evidence import Evidence
from erasure.metrics._base import Metric, Score
from erasure.statistics import jackknife_interval


class FID(Metric):
    """Fréchet Inception distance."""

    definition = "fid/1"
    higher_is_better = False
    needs_inception = True

    def measure(self, evidence: Evidence) -> Score:
        """Needs the Inception weights (`--inception`)."""
        drawn, real = evidence.inception_pair
        interval = jackknife_interval(drawn, lambda rows: frechet(rows, real), groups=10)
        return self.score(frechet(drawn, real), len(drawn), interval, n_real=len(real))
