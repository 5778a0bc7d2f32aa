"""sld: safe latent diffusion, sample with guidance away from the concept, no weight changes (Schramowski, 2023).

https://arxiv.org/abs/2211.05105, eq. 3 to 8, as in models/guidance.py; the presets are the paper's four
configurations, medium the default. diffusers has 20 for the scale of its weak configuration where the paper has 200.
It is a reference, not an erasure: the weights are the original's, and any other program generates the concept from
them. The numbers were chosen for Stable Diffusion 1 in 50 steps; with velocity the threshold acts on the network's
prediction, as in diffusers. Class-conditional models are our extension: the classes take the place of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.methods.base import Options
from erasure.methods.guidance.inference_time import Steered
from erasure.models.guidance import Steering


@dataclass(frozen=True, kw_only=True)
class SLD(Steered):
    """Safety guidance with warm-up, threshold and momentum."""

    presets: ClassVar[Mapping[str, Options]] = {
        "weak": {"scale": 200.0, "threshold": 0.0, "momentum": 0.0, "decay": 0.0, "warmup": 15},
        "medium": {"scale": 1000.0, "threshold": 0.01, "momentum": 0.3, "decay": 0.4, "warmup": 10},
        "strong": {"scale": 2000.0, "threshold": 0.025, "momentum": 0.5, "decay": 0.7, "warmup": 7},
        "max": {"scale": 5000.0, "threshold": 1.0, "momentum": 0.5, "decay": 0.7, "warmup": 0},
    }

    scale: Annotated[float, "strength of the guidance away from the concept, s_S"] = 1000.0
    threshold: Annotated[float, "distance from the concept beyond which a prediction is not changed, lambda"] = 0.01
    momentum: Annotated[float, "weight of the momentum, s_m"] = 0.3
    decay: Annotated[float, "share of the momentum that each step keeps, beta_m"] = 0.4
    warmup: Annotated[int, "first denoising steps, which are not changed, delta"] = 10

    def steering(self, about: dict[str, Any]) -> Steering:
        """Return the concept and the five numbers."""
        numbers = {name: getattr(self, name) for name in ("scale", "threshold", "momentum", "decay", "warmup")}
        return Steering("sld", **about, **numbers)

    def check(self, task: Task) -> None:
        """Also raise OptionError for a number outside its range."""
        super().check(task)
        if not (0 < self.scale < float("inf") and 0 <= self.momentum < 1 and 0 <= self.decay < 1 and self.warmup >= 0):
            raise OptionError("--scale must be above 0, --momentum and --decay lie in [0, 1), --warmup be at least 0")
        if not abs(self.threshold) < float("inf"):
            raise OptionError(f"--threshold {self.threshold} must be a number")
