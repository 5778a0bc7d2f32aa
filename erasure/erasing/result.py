"""EraseResult: what an erasure did and how its model scored, as run.json and `--json` have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from erasure.core.run_dir import Trained
from erasure.evaluation.measure import Measurements
from erasure.evaluation.metrics.base import Score


@dataclass(frozen=True)
class EraseResult:
    """One erasure: the folder of the run, what training did, and the scores of the cleaned model and the original.

    `scores` and `original` are None for a run that was not evaluated; `phases` are seconds by name.
    """

    run: str
    method: str
    mask: str
    forget: str
    trained: Trained
    scores: Measurements | None = None
    original: Measurements | None = None
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> Mapping[str, Score]:
        """The metrics of the cleaned model; empty for a run that was not evaluated."""
        return self.scores.metrics if self.scores else {}

    @property
    def ua(self) -> float | None:
        """Unlearning accuracy in percent."""
        return self.scores.ua if self.scores else None

    @property
    def ra(self) -> float | None:
        """Retain accuracy (of prompts: in-domain retain accuracy) in percent."""
        return self.scores.ra if self.scores else None

    @property
    def seconds(self) -> float:
        """Seconds of the mask and of training."""
        return self.trained["seconds"]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EraseResult:
        """The inverse of `to_dict`."""
        trained = cast(Trained, {key: values[key] for key in Trained.__annotations__ if key in values})
        original = values.get("original")
        return cls(
            values["run"],
            values["method"],
            values["mask"],
            values["forget"],
            trained,
            Measurements.from_dict(values) if "metrics" in values else None,
            Measurements.from_dict(original) if original else None,
            values.get("phases", {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, flat, as run.json and `--json` have them."""
        found: dict[str, Any] = {
            "run": self.run,
            "method": self.method,
            "mask": self.mask,
            "forget": self.forget,
            "ua": None,
            "ra": None,
            **self.trained,
        }
        if self.scores:
            found |= self.scores.to_dict()
        if self.original:
            found["original"] = {"seconds": 0.0, **self.original.to_dict()}
        return {**found, "phases": dict(self.phases)}


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a run beside its original's, or those of a model, which then is its own original.

    `run` is the folder of the run, or `model` what the model is; `seconds` are those of the erasure.
    """

    forget: str
    scores: Measurements
    original: Measurements
    evaluation_seconds: float
    run: str | None = None
    model: str | None = None
    method: str | None = None
    seconds: float | None = 0.0

    @property
    def metrics(self) -> Mapping[str, Score]:
        """The metrics of the cleaned model, or of the model."""
        return self.scores.metrics

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as `--json` has them."""
        whose = {"run": self.run, "method": self.method} if self.run is not None else {"model": self.model}
        return {
            **whose,
            "forget": self.forget,
            "seconds": self.seconds,
            **self.scores.to_dict(),
            "original": {"seconds": 0.0, **self.original.to_dict()},
            "evaluation_seconds": self.evaluation_seconds,
        }
