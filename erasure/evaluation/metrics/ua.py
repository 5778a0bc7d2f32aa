"""ua: unlearning accuracy, 100 - accuracy on what was to be forgotten (Fan et al., 2024).

For a generator: images asked for as a forgotten class, judged by a held classifier; of prompts that name several
things, wherever in the image the forgotten one is. For a classifier: its own answers
on the forget set. `given_original` counts only those that the original model gets right from the same seed or image.
"""

from __future__ import annotations

from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class UA(Metric):
    """Unlearning accuracy in percent."""

    definition = "ua/2"
    higher_is_better = True
    unit = "%"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Share of the forget part that is not recognised as its class."""
        missed = ~outputs.correct("forget")
        if outputs.original is None:
            return self.share(missed)
        before = outputs.original.correct("forget")
        given = 100.0 * float(missed[before].mean()) if before.any() else None
        return self.share(missed, given_original=given, n_given_original=int(before.sum()))
