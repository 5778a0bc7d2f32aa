"""clip_score: how well kept images fit their prompts in CLIP's space (Hessel et al., 2021).

100 x max(cos, 0) between the projected embeddings of image and prompt; the model is named by --clip.
"""

from __future__ import annotations

from erasure.core.statistics import mean_interval
from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class CLIPScore(Metric):
    """Mean CLIP score of the kept prompts' images."""

    definition = "clip_score/1"
    higher_is_better = True
    needs = "clip"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Needs a CLIP model (`--clip`)."""
        scores, name = outputs.clip_scores("retain")
        return self.score(float(scores.mean()), len(scores), mean_interval(scores), model=name)
