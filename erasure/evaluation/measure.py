"""Measure: metrics over the outputs of a model, each with its interval, and the reasons for those left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erasure.core import registry
from erasure.core.errors import NotApplicableError
from erasure.evaluation.metrics.base import Score
from erasure.evaluation.outputs import ModelOutputs


@dataclass(frozen=True)
class Measurements:
    """Scores by metric, why others are missing, and the hash of the classifier that labeled the images."""

    metrics: dict[str, Score]
    not_measured: dict[str, str]
    classifier_hash: str | None = None

    @property
    def ua(self) -> float | None:
        """Unlearning accuracy in percent, None where it was not measured."""
        return self._value("ua")

    @property
    def ra(self) -> float | None:
        """What was kept, in percent: RA, or IRA for a text-to-image model; None where it was not measured."""
        return self._value("ra" if "ra" in self.metrics else "ira")

    def _value(self, name: str) -> float | None:
        return self.metrics[name].value if name in self.metrics else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurements:
        """The inverse of `to_dict`."""
        metrics = {name: Score.from_dict(score) for name, score in values["metrics"].items()}
        return cls(metrics, dict(values["not_measured"]), values.get("classifier_hash"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file: `ua`, `ra`, `metrics`, `not_measured` and `classifier_hash`."""
        return {
            "ua": self.ua,
            "ra": self.ra,
            "metrics": {name: score.to_dict() for name, score in self.metrics.items()},
            "not_measured": self.not_measured,
            "classifier_hash": self.classifier_hash,
        }


def measured(outputs: ModelOutputs, metrics: Sequence[str]) -> Measurements:
    """The named `metrics`, or those that apply where none is named, with the reasons for the others.

    Raises NotApplicableError for a named metric that cannot be measured.
    """
    scores: dict[str, Score] = {}
    skipped: dict[str, str] = {}
    for name in metrics or outputs.default_metrics:
        try:
            scores[name] = registry.load("metrics", name)().measure(outputs)
        except NotApplicableError as error:
            if metrics and not (name == "paired_distance" and outputs.original is None):
                raise NotApplicableError(f"--metrics {name} cannot be measured: {error}") from error
            skipped[name] = str(error)
    return Measurements(scores, skipped, outputs.labeler_hash)
