"""forget_share: how many samples of an unconditional model show a forgotten class (Fan et al., 2024, without labels).

The original model's value is the base rate; an erased model's should be near zero.
"""

from __future__ import annotations

import numpy as np

from erasure.core.errors import NotApplicableError
from erasure.evaluation.metrics.base import ShareMetric
from erasure.evaluation.outputs import ModelOutputs
from erasure.sampling.draw import UNCONDITIONAL


class ForgetShare(ShareMetric):
    """Share of forgotten classes among all samples, in percent."""

    definition = "forget_share/1"
    higher_is_better = False

    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """Which samples the classifier labels as a forgotten class."""
        if not outputs.task.forget:
            raise NotApplicableError("no class is named as forgotten: give --forget")
        if not (outputs.samples.labels == UNCONDITIONAL).all():
            raise NotApplicableError("forget_share is for unconditional models: this one is measured by ua")
        return np.isin(outputs.predicted, outputs.task.forget)
