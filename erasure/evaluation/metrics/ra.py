"""ra: retain accuracy, accuracy on what was to be kept (Fan et al., 2024).

For a generator: images generated for the retained classes, labeled by a frozen classifier, also class by class. For a
classifier: its own predictions on the retain set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from erasure.evaluation.metrics.base import ShareMetric
from erasure.evaluation.outputs import ModelOutputs


class RA(ShareMetric):
    """Retain accuracy in percent."""

    definition = "ra/1"

    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """Which of the retain part is recognised as its class."""
        return outputs.correct("retain")

    def details(self, outputs: ModelOutputs, hits: np.ndarray) -> Mapping[str, Any]:
        """`by_class` shows what an average would hide."""
        labels, names = outputs.samples.labels[outputs.chosen("retain")], outputs.task.class_names
        return {"by_class": {names[i]: 100.0 * float(hits[labels == i].mean()) for i in np.unique(labels)}}
