"""gradient_ascent: climb the loss of the forget set (the GA row of Fan et al., 2024; Thudi et al., 2022).

L = -L(D_f) + alpha L(D_r), alpha = 0 in the paper. The loss has no lower bound, so the run ends by its number of steps;
when it diverges it stops and keeps the last good weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from erasure.data.task import Task
from erasure.methods.base import CLASSIFIER, DISTILLED, LATENT, GradientMethod, StepBatches
from erasure.models import Examples, Model


@dataclass(frozen=True, kw_only=True)
class GradientAscent(GradientMethod):
    """Ascent on the forget set."""

    alpha: Annotated[float, "weight of the retain loss"] = 0.0

    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        "stable_diffusion": LATENT,
        "sdxl": LATENT,
        "sd3": LATENT,
        "flux": DISTILLED,
        "classifier": {**CLASSIFIER, "learning_rate": 1e-4, "epochs": 5.0},
    }

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """Minus the loss on forget images, plus alpha times the loss on retain images."""
        part, parts = draws.step.part, draws.step.parts
        forget = model.examples(draws.forget, draws.generator).part(part, parts)
        if not self.alpha:
            forget_loss = model.per_sample_loss(forget).mean()
            return {"loss": -forget_loss, "forget": forget_loss}
        retain = model.examples(draws.retain, draws.generator, condition_drop=True).part(part, parts)
        errors = model.per_sample_loss(Examples.joined(forget, retain))
        forget_loss, retain_loss = errors[: len(forget.weight)].mean(), errors[len(forget.weight) :].mean()
        return {"loss": self.alpha * retain_loss - forget_loss, "forget": forget_loss, "retain": retain_loss}
