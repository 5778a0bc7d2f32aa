"""mia: membership inference attack, the share of the forget set it takes for unseen (Fan et al., 2024; MIA-Efficacy).

A support vector machine on the true-label confidence, with retained samples as members and test samples as non-members.
Higher means better hidden, but the target is the value of Retrain, neither 100 nor 50.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from erasure.evaluation.membership_inference import called_non_members
from erasure.evaluation.metrics.base import ShareMetric
from erasure.evaluation.outputs import ModelOutputs


class MIA(ShareMetric):
    """Share of forgotten samples that the attack takes for unseen, in percent."""

    definition = "mia/1"

    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """What the attack says of each forgotten sample, True for unseen."""
        retain, test, forget = (outputs.predictions(part).confidences for part in ("retain", "test", "forget"))
        return called_non_members(retain, test, forget, outputs.config.sample_seed)

    def details(self, outputs: ModelOutputs, hits: np.ndarray) -> Mapping[str, Any]:
        """`n_attack`: how many samples of each side the attack learned from."""
        return {"n_attack": min(len(outputs.predictions(part).labels) for part in ("retain", "test"))}
