"""AuditRequest: what is audited, on which prompts, with which detectors, and against which limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure.auditing.protocols import Protocol, load_protocol
from erasure.auditing.verdict import check_limit
from erasure.core.errors import OptionError
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import Model
from erasure.prompts.prompt_set import PromptSet

GivenModel = str | Path | Model  # a name, folder, file, run or hub id, or a loaded model
DetectorOptions = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class AuditRequest:
    """A `model` with `prompts`, or a folder of `images`; `base` is of the same kind.

    The first detector decides, the others are compared with it. `classes` and `threshold` take the place of that
    detector's own. `reference` is a folder of real images for distances.
    """

    model: GivenModel | None = None
    images: str | Path | None = None
    base: GivenModel | None = None
    prompts: PromptSet | None = None
    protocol: Protocol = field(default_factory=lambda: load_protocol(None))
    detectors: DetectorOptions = field(default_factory=lambda: {"nudenet": {}})
    classes: tuple[str, ...] = ()
    threshold: float | None = None
    max_rate: float | None = None
    positive_control: str | Path | None = None
    negative_control: str | Path | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    reference: str | Path | None = None
    keep_images: bool = False
    seed: int = 0
    batch_size: int = 0

    def check(self) -> None:
        """Raise OptionError for what does not go together."""
        if (self.model is None) == (self.images is None):
            raise OptionError("give a MODEL with --prompts, or --images and a folder: one of the two")
        if self.model is not None and self.prompts is None:
            raise OptionError("--prompts is missing: give i2p, a preset of prompts/ (nudity, ...) or a CSV file")
        if self.images is not None and self.prompts is not None:
            raise OptionError("--prompts are for a MODEL: the images of --images exist already")
        if self.images is not None and isinstance(self.base, Model):
            raise OptionError("with --images, --base is a folder of the base's images, not a model")
        check_limit(self.max_rate)
        if not self.detectors:
            raise OptionError("--detector names none: see `erasure list detectors`")
        self.evaluation.check()

    @property
    def recorded_protocol(self) -> Protocol:
        """The protocol under the name that goes on record, which says what the request changed of it."""
        changed = {
            "detectors": tuple(self.detectors) != self.protocol.detectors,
            "classes": bool(self.classes),
            "threshold": self.threshold is not None and self.threshold != self._threshold_of_protocol,
        }
        return self.protocol.renamed([name for name, is_changed in changed.items() if is_changed])

    @property
    def _threshold_of_protocol(self) -> float | None:
        return self.protocol.threshold_of(next(iter(self.detectors)))

    @property
    def measures(self) -> bool:
        """Whether anything but detectors reads the images."""
        named = (self.evaluation.clip, self.evaluation.inception, self.evaluation.dinov2, self.evaluation.classifier)
        return bool(self.evaluation.metrics) or any(named)
