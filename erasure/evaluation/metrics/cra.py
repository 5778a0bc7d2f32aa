"""cra: cross-domain retain accuracy, what is kept of other kinds (UnlearnCanvas, Zhang et al., 2024).

Judged on the domains that nothing was erased from (styles when a digit is erased), on all prompts; of forget prompts
also whatever else they show that was not erased, so a seven in an erased style must still be a seven.
"""

from __future__ import annotations

from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class CRA(Metric):
    """Cross-domain retain accuracy in percent."""

    definition = "cra/1"
    higher_is_better = True
    unit = "%"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Share of those values that the judge sees; prompts of several things are left to `composition`."""
        return self.share(outputs.correct_in("across"))
