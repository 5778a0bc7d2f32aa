"""l1_sparse: fine-tuning with a sparsity penalty that fades (Jia et al., 2023).

L = L(D_r) + gamma (1 - epoch / E) ||theta||_1 over E epochs; https://arxiv.org/abs/2304.04934. The paper
searches gamma in 1e-6 to 1e-4 and the learning rate in 1e-3 to 1e-1. Given --steps in place of --epochs, every step is
an epoch of its own. Weights that a mask freezes keep their values; the penalty includes them, as a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.methods.base import FINETUNING, GradientMethod, Options, StepBatches
from erasure.models import Model


@dataclass(frozen=True, kw_only=True)
class L1Sparse(GradientMethod):
    """Training on the retain set under an l1 penalty."""

    gamma: Annotated[float, "weight of the l1 norm of all weights in the first epoch"] = 5e-5

    defaults_of: ClassVar[Mapping[str, Options]] = FINETUNING

    def check(self, task: Task) -> None:
        """Also raise OptionError for a negative penalty."""
        super().check(task)
        if not 0 <= self.gamma < float("inf"):
            raise OptionError(f"--gamma {self.gamma} must be at least 0")

    def penalty(self, step: int, steps: int) -> float:
        """The weight of the l1 norm in `step` of `steps`."""
        epochs = self.epochs or steps
        return self.gamma * (1 - int(step * epochs / steps) / epochs)

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the loss on retain images plus the penalty on the l1 norm of the weights."""
        retain_loss = model.per_sample_loss(batches.retain_examples(model)).mean()
        norm = torch.stack([p.abs().sum() for n, p in model.network.named_parameters() if self.trains(n)]).sum()
        penalty = self.penalty(batches.step.index, batches.step.steps)
        return {"loss": retain_loss + penalty * norm, "retain": retain_loss, "l1": norm.detach()}
