"""avg_gap: the mean absolute gap of UA, RA, TA and MIA to those of Retrain (Fan et al., 2024).

The one number of the paper's tables: how far a method is from the model that has never seen the forget set. Two
Retrain models with different seeds have a gap too; that is the least a method can hope for.
"""

from __future__ import annotations

from collections.abc import Mapping

from erasure.core import registry
from erasure.core.errors import NotApplicableError
from erasure.evaluation.metrics.base import UNKNOWN, Metric, Score
from erasure.evaluation.outputs import ModelOutputs
from erasure.evaluation.settings import NO_RETRAINED

PARTS = ("ua", "ra", "ta", "mia")


class AvgGap(Metric):
    """Mean gap to Retrain in percentage points."""

    definition = "avg_gap/1"
    higher_is_better = False
    unit = "%"
    needs = "retrained"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Needs a classifier that was trained without the forget set (`--retrained`)."""
        if outputs.retrained is None:
            raise NotApplicableError(NO_RETRAINED)
        metrics = {name: registry.load("metrics", name)() for name in PARTS}
        own, theirs = (
            {name: metric.measure(model).value for name, metric in metrics.items()}
            for model in (outputs, outputs.retrained)
        )
        gaps = {name: abs(own[name] - theirs[name]) for name in PARTS}
        return self.score(average_gap(own, theirs), len(PARTS), UNKNOWN, gaps=gaps)


def average_gap(own: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean of |own - retrained| over UA, RA, TA and MIA, in percentage points."""
    return sum(abs(own[name] - retrained[name]) for name in PARTS) / len(PARTS)
