"""finetune: continue training on the retain set alone (Warnecke et al., 2021; the FT row of Fan et al., 2024).

L = L(D_r). The weakest baseline: the loss does not use the forget set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from erasure.data.task import Task
from erasure.methods.base import FINETUNING, GradientMethod, Options, StepBatches
from erasure.models import Model


@dataclass(frozen=True, kw_only=True)
class Finetune(GradientMethod):
    """Training on the retain set."""

    defaults_of: ClassVar[Mapping[str, Options]] = FINETUNING

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the loss the model was trained with, on retain images."""
        retain_loss = model.per_sample_loss(batches.retain_examples(model)).mean()
        return {"loss": retain_loss, "retain": retain_loss}
