"""mia: membership inference attack, the share of the forget set it takes for unseen (Fan et al., 2024; MIA-Efficacy).

A support vector machine on the true-label confidence, with retained samples as members and test samples as non-members.
Higher means better hidden, but the target is the value of Retrain, neither 100 nor 50.
"""

from __future__ import annotations

from erasure.evaluation.membership_inference import called_non_members
from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class MIA(Metric):
    """Share of forgotten samples that pass for unseen, in percent."""

    definition = "mia/1"
    higher_is_better = True
    unit = "%"

    def measure(self, outputs: ModelOutputs) -> Score:
        """The attack's verdict on every forgotten sample; `n_attack` samples of each side taught it."""
        retain, test, forget = (outputs.predictions(part).confidences for part in ("retain", "test", "forget"))
        hidden = called_non_members(retain, test, forget, outputs.config.sample_seed)
        return self.share(hidden, n_attack=min(len(retain), len(test)))
