"""Measure: metrics over the outputs of a model, each with its interval, and the reasons for those left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erasure.core import registry
from erasure.core.errors import NotApplicableError
from erasure.evaluation.outputs import ModelOutputs


def measured(outputs: ModelOutputs, metrics: Sequence[str]) -> dict[str, Any]:
    """`{"ua", "ra", "metrics": {name: score}, "not_measured": {name: reason}}`.

    Without named `metrics` those that apply are measured and the others listed with the reason; a named one that does
    not apply raises NotApplicableError.
    """
    scores: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in metrics or outputs.default_metrics:
        try:
            scores[name] = registry.load("metrics", name)().measure(outputs).as_json()
        except NotApplicableError as error:
            if metrics and not (name == "paired_distance" and outputs.original is None):
                raise NotApplicableError(f"--metrics {name} cannot be measured: {error}") from error
            skipped[name] = str(error)
    kept = "ra" if "ra" in scores else "ira"  # what was kept, in the words of each kind of model
    headline = {key: scores[name]["value"] if name in scores else None for key, name in (("ua", "ua"), ("ra", kept))}
    return {**headline, "metrics": scores, "not_measured": skipped, "classifier_hash": outputs.labeler_hash}
