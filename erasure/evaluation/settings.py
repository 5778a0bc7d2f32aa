"""EvaluationConfig: which metrics are measured, with which networks, on which samples, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from erasure.core import registry
from erasure.evaluation.features.spaces import need_network
from erasure.sampling.draw import SamplingOptions


@dataclass(frozen=True)
class EvaluationConfig:
    """How models are evaluated.

    `classifier` labels generated images; `inception`, `clip` and `dinov2` name the networks in whose features distances
    are taken. Empty `metrics` are all that apply without further files.
    """

    metrics: tuple[str, ...] = ()
    classifier: str | None = None
    inception: str | None = None
    clip: str | None = None
    dinov2: str | None = None
    samples: SamplingOptions = field(default_factory=SamplingOptions)
    sample_seed: int = 0

    def check(self) -> None:
        """Raise OptionError for an unknown metric or a value outside its range.

        Raises NotApplicableError for a metric whose network was not named.
        """
        self.samples.check()
        for name in self.metrics:
            space = registry.load("metrics", name).needs
            if space is not None:
                need_network(space, getattr(self, space))

    def as_json(self) -> dict[str, Any]:
        """Plain values for run.json."""
        return {**asdict(self), "metrics": list(self.metrics)}

    def replaced(self, given: Mapping[str, Any]) -> EvaluationConfig:
        """A copy with the given fields, those of its SamplingOptions too."""
        sampling = {field.name for field in fields(SamplingOptions)}
        samples = replace(self.samples, **{key: value for key, value in given.items() if key in sampling})
        return replace(self, samples=samples, **{key: value for key, value in given.items() if key not in sampling})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvaluationConfig:
        """The inverse of `as_json`."""
        return cls(**{**values, "metrics": tuple(values["metrics"]), "samples": SamplingOptions(**values["samples"])})
