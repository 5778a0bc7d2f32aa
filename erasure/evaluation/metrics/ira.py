"""ira: in-domain retain accuracy, what is kept of the erased kind (UnlearnCanvas, Zhang et al., 2024).

Images of retain prompts, judged on the domains that something was erased from: the other digits when a digit is erased.
"""

from __future__ import annotations

from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class IRA(Metric):
    """In-domain retain accuracy in percent."""

    definition = "ira/1"
    higher_is_better = True
    unit = "%"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Share of kept values that the judge sees; prompts of several things are left to `composition`."""
        return self.share(outputs.correct_in("domain"))
