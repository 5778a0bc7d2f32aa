"""finetune: train on, on the retain set alone (Warnecke et al., 2021; the FT row of Fan et al., 2024).

L = L(D_r). The weakest of the baselines: nothing in it speaks of the forget set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from erasure.data.task import Task
from erasure.methods.base import RETAINING, GradientMethod, StepBatches
from erasure.models import Model


@dataclass(frozen=True, kw_only=True)
class Finetune(GradientMethod):
    """Training on the retain set."""

    defaults_of: ClassVar[dict[str, dict[str, Any]]] = RETAINING

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """The loss the model was trained with, on retain images."""
        retain = model.examples(draws.retain, draws.generator, condition_drop=True)
        retain_loss = model.per_sample_loss(retain.part(draws.step.part, draws.step.parts)).mean()
        return {"loss": retain_loss, "retain": retain_loss}
