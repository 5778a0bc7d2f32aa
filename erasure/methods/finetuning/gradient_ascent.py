"""gradient_ascent: climb the loss of the forget set (the GA row of Fan et al., 2024; Thudi et al., 2022).

L = -L(D_f) + alpha L(D_r), alpha = 0 in the paper. The loss has no lower bound, so only the number of steps ends the
run; when it diverges, training stops and keeps the last good weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from erasure.data.task import Task
from erasure.methods.base import CLASSIFIER, FLUX, STABLE_DIFFUSION, GradientMethod, Options, StepBatches
from erasure.models import Model


@dataclass(frozen=True, kw_only=True)
class GradientAscent(GradientMethod):
    """Ascent on the forget set."""

    alpha: Annotated[float, "weight of the retain loss"] = 0.0

    defaults_of: ClassVar[Mapping[str, Options]] = {
        "stable_diffusion": STABLE_DIFFUSION,
        "sdxl": STABLE_DIFFUSION,
        "sd3": STABLE_DIFFUSION,
        "flux": FLUX,
        "classifier": {**CLASSIFIER, "learning_rate": 1e-4, "epochs": 5.0},
    }

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return minus the loss on forget images, plus alpha times the loss on retain images."""
        forget = batches.forget_examples(model)
        if not self.alpha:
            forget_loss = model.per_sample_loss(forget).mean()
            return {"loss": -forget_loss, "forget": forget_loss}
        forget_loss, retain_loss = batches.losses(model, forget, batches.retain_examples(model))
        return {"loss": self.alpha * retain_loss - forget_loss, "forget": forget_loss, "retain": retain_loss}
