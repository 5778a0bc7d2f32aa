"""Metric: one number about one model, over how many observations and with which interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from erasure.core.records import Record
from erasure.core.statistics import jackknife_interval, wilson
from erasure.evaluation.distances import frechet_to
from erasure.evaluation.features.spaces import Space
from erasure.evaluation.outputs import ModelOutputs
from erasure.evaluation.settings import Need

Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)


@dataclass(frozen=True)
class Score(Record):
    """`value` in `unit` over `n` observations, with its 95 % interval and the version of its definition."""

    value: float
    unit: str
    n: int
    interval: Interval
    higher_is_better: bool
    definition: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; an interval without an end is null."""
        low, high = self.interval
        return {**asdict(self), "interval": [low, high] if math.isfinite(low) and math.isfinite(high) else None}

    @classmethod
    def _read(cls, values: object, place: str) -> Self:
        if isinstance(values, Mapping) and values.get("interval", ()) is None:
            values = {**values, "interval": UNKNOWN}
        return super()._read(values, place)


class Metric(ABC):
    """A measure; `definition` names it and its version, and changes whenever its numbers do."""

    definition: ClassVar[str]
    higher_is_better: ClassVar[bool]
    unit: ClassVar[str] = ""
    needs: ClassVar[Need | None] = None  # the field of EvaluationConfig without which it cannot be measured

    @abstractmethod
    def measure(self, outputs: ModelOutputs) -> Score:
        """The score; raises NotApplicableError when this kind of model has no such thing."""

    def score(self, value: float, n: int, interval: Interval, **details: Any) -> Score:
        """A Score under this metric's name."""
        return Score(value, self.unit, n, interval, self.higher_is_better, self.definition, details)


class ShareMetric(Metric):
    """A metric that is the percentage of true values, with Wilson's interval."""

    higher_is_better = True
    unit = "%"

    @abstractmethod
    def hits(self, outputs: ModelOutputs) -> np.ndarray:
        """What is counted, (n,) booleans."""

    def details(self, outputs: ModelOutputs, hits: np.ndarray) -> Mapping[str, Any]:
        """What a reader should know beside the percentage."""
        return {}

    def measure(self, outputs: ModelOutputs) -> Score:
        """The percentage of `hits`."""
        hits = self.hits(outputs)
        low, high = wilson(int(hits.sum()), len(hits))
        details = self.details(outputs, hits)
        return self.score(100.0 * float(hits.mean()), len(hits), (100.0 * low, 100.0 * high), **details)


class FrechetMetric(Metric):
    """A metric that is a Fréchet distance of features, or has one."""

    higher_is_better = False

    def frechet(self, generated: np.ndarray, reference: np.ndarray, groups: int, **details: Any) -> Score:
        """Fréchet distance of features (n, d) to those of the reference (m, d).

        Its interval is a delete-a-group jackknife over the generated images, unknown for two images.
        """
        distance = frechet_to(reference)
        value = distance(generated)
        interval = jackknife_interval(generated, distance, groups) if len(generated) > 2 else UNKNOWN
        return self.score(value, len(generated), interval, **details)


class SpaceMetric(FrechetMetric):
    """A distance of retain images to real ones, or the base model's, in the space of the network that `needs` names."""

    needs: ClassVar[Space]

    @abstractmethod
    def distance(self, generated: np.ndarray, reference: np.ndarray, details: dict[str, Any]) -> Score:
        """The distance of features (n, d) to those of the reference (m, d)."""

    def measure(self, outputs: ModelOutputs) -> Score:
        """Raise NotApplicableError without the network, or below two images a side."""
        generated, reference = outputs.pair(self.needs)
        details: dict[str, Any] = outputs.counted(reference)
        if self.needs != "inception":  # of Inception there is only one network, wherever its file lies
            details |= {"model": getattr(outputs.config, self.needs)}
        return self.distance(generated, reference, details)
