"""cmmd: squared MMD of CLIP's image embeddings to those of the reference, unbiased (after Jayasumana et al., 2024).

Unit embeddings under a Gaussian kernel of width 10, times 1000, as in the paper; the estimator is not the paper's,
which counts each image with itself and so tells equal distributions apart (by 0.11 at 50 images a side). Between equal
ones ours is 0 on average, so it can be negative. Compare numbers of one model only, named by --clip; the paper's is
`openai/clip-vit-large-patch14-336`.
"""

from __future__ import annotations

from erasure.evaluation.distances import gaussian, kernel_distance
from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs

SCALE = 1000


class CMMD(Metric):
    """CLIP maximum mean discrepancy."""

    definition = "cmmd/1"
    higher_is_better = False
    needs = "clip"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Needs a CLIP model (`--clip`)."""
        drawn, reference = outputs.pair("clip")
        value, (low, high) = kernel_distance(drawn, reference, gaussian, "cmmd")
        details = {**outputs.counted(reference), "model": outputs.config.clip}
        return self.score(SCALE * value, len(drawn), (SCALE * low, SCALE * high), **details)
