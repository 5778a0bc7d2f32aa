"""EvaluationConfig: which metrics are measured, with which networks, on which samples, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from erasure.core import registry
from erasure.core.errors import NotApplicableError
from erasure.evaluation.features.spaces import need_network
from erasure.models import located
from erasure.sampling.draw import SamplingOptions

Need = Literal["inception", "clip", "dinov2", "retrained"]
NO_RETRAINED = (
    "avg_gap compares a classifier with one that was trained without the forget set: give --retrained, a run of "
    "`erasure erase --method retrain` or a model"
)


@dataclass(frozen=True)
class EvaluationConfig:
    """How models are evaluated.

    `classifier` labels generated images; `inception`, `clip` and `dinov2` name the networks in whose features distances
    are taken. `retrained` is a classifier that was trained without the forget set, to which `avg_gap` compares. Empty
    `metrics` are all that apply without further files.
    """

    metrics: tuple[str, ...] = ()
    classifier: str | None = None
    inception: str | None = None
    clip: str | None = None
    dinov2: str | None = None
    samples: SamplingOptions = field(default_factory=SamplingOptions)
    sample_seed: int = 0
    retrained: str | None = None

    def check(self) -> None:
        """Raise OptionError for an unknown metric or a value outside its range.

        Raises NotApplicableError for a metric whose network or retrained model was not named.
        """
        self.samples.check()
        for name in self.metrics:
            need: Need | None = registry.load("metrics", name).needs
            if need == "retrained":
                if self.retrained is None:
                    raise NotApplicableError(NO_RETRAINED)
            elif need is not None:
                need_network(need, getattr(self, need))

    def as_json(self) -> dict[str, Any]:
        """Plain values for run.json; `retrained` only where one was named, so that other records keep their hash."""
        values = {**asdict(self), "metrics": list(self.metrics)}
        return {key: value for key, value in values.items() if key != "retrained" or value is not None}

    def located(self) -> EvaluationConfig:
        """A copy whose models are named in words that hold from any folder: an absolute path, or a hub id."""
        classifier, retrained = (located(given) if given else None for given in (self.classifier, self.retrained))
        return replace(self, classifier=classifier, retrained=retrained)

    def replaced(self, given: Mapping[str, Any]) -> EvaluationConfig:
        """A copy with the given fields, those of its SamplingOptions too."""
        sampling = {field.name for field in fields(SamplingOptions)}
        samples = replace(self.samples, **{key: value for key, value in given.items() if key in sampling})
        return replace(self, samples=samples, **{key: value for key, value in given.items() if key not in sampling})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvaluationConfig:
        """The inverse of `as_json`."""
        return cls(**{**values, "metrics": tuple(values["metrics"]), "samples": SamplingOptions(**values["samples"])})
