"""loss_auc: how well the loss alone tells forgotten samples from test samples (Yeom et al., 2018; DeLong et al., 1988).

0.5 is ideal. Above it the forget set still looks learned; below it, it looks stranger than what was never seen.
"""

from __future__ import annotations

from erasure.evaluation.membership_inference import loss_auc
from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class LossAUC(Metric):
    """Area under the ROC curve of the per-sample loss, the forget set against the test split."""

    definition = "loss_auc/1"
    higher_is_better = False

    def measure(self, outputs: ModelOutputs) -> Score:
        """The share of pairs in which the test sample has the larger loss."""
        forget, test = outputs.predictions("forget").losses, outputs.predictions("test").losses
        value, interval = loss_auc(forget, test)
        return self.score(value, len(forget), interval, n_test=len(test))
