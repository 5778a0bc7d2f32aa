"""ra: retain accuracy, accuracy on what was to be kept (Fan et al., 2024).

For a generator: images asked for as a retained class, judged by a held classifier, also class by class. For a
classifier: its own answers on the retain set.
"""

from __future__ import annotations

import numpy as np

from erasure.evaluation.metrics.base import Metric, Score
from erasure.evaluation.outputs import ModelOutputs


class RA(Metric):
    """Retain accuracy in percent."""

    definition = "ra/1"
    higher_is_better = True
    unit = "%"

    def measure(self, outputs: ModelOutputs) -> Score:
        """Share of the retain part that is recognised as its class; `by_class` shows what an average would hide."""
        correct = outputs.correct("retain")
        labels = outputs.samples.labels[outputs.chosen("retain")]
        names = outputs.task.class_names
        by_class = {names[i]: 100.0 * float(correct[labels == i].mean()) for i in np.unique(labels)}
        return self.share(correct, by_class=by_class)
