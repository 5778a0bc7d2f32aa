"""Metric: one number about one model, with how many observations and how sure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from erasure.core.statistics import jackknife_interval, wilson
from erasure.evaluation.distances import frechet_to
from erasure.evaluation.outputs import ModelOutputs, Space


@dataclass(frozen=True)
class Score:
    """`value` in `unit` over `n` observations, with its 95 % interval and the version of its definition."""

    value: float
    unit: str
    n: int
    interval: tuple[float, float]
    higher_is_better: bool
    definition: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; an interval without an end is null."""
        low, high = self.interval
        return {**asdict(self), "interval": [low, high] if math.isfinite(low) and math.isfinite(high) else None}


class Metric(ABC):
    """A measure; `definition` names it and its version, and changes whenever its numbers do."""

    definition: ClassVar[str]
    higher_is_better: ClassVar[bool]
    unit: ClassVar[str] = ""
    needs: ClassVar[Space | None] = None  # the network without which it cannot be measured

    @abstractmethod
    def measure(self, outputs: ModelOutputs) -> Score:
        """The score; raises NotApplicableError when the evidence has no such thing."""

    def score(self, value: float, n: int, interval: tuple[float, float], **details: Any) -> Score:
        """A Score under this metric's name."""
        return Score(value, self.unit, n, interval, self.higher_is_better, self.definition, details)

    def share(self, hits: np.ndarray, **details: Any) -> Score:
        """The percentage of true values, with Wilson's interval."""
        low, high = wilson(int(hits.sum()), len(hits))
        return self.score(100.0 * float(hits.mean()), len(hits), (100.0 * low, 100.0 * high), **details)

    def frechet(self, drawn: np.ndarray, reference: np.ndarray, groups: int, **details: Any) -> Score:
        """Fréchet distance of features (n, d) to those of the reference (m, d), with a jackknife over the drawn ones.

        Two images have a distance and no interval.
        """
        distance = frechet_to(reference)
        value = distance(drawn)
        interval = jackknife_interval(drawn, distance, groups) if len(drawn) > 2 else (-math.inf, math.inf)
        return self.score(value, len(drawn), interval, **details)
