"""l1_sparse: fine-tuning with a sparsity penalty that fades (Jia et al., 2023).

L = L(D_r) + gamma (1 - epoch / E) ||theta||_1 over E epochs; https://arxiv.org/abs/2304.04934. The paper
searches gamma in 1e-6 to 1e-4 and the learning rate in 1e-3 to 1e-1. Given --steps in place of --epochs, every step is
an epoch of its own. Weights that a mask holds keep their values; the penalty counts them, which moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.methods.base import RETAINING, GradientMethod, Job, StepBatches
from erasure.models import Model
from erasure.training.loop import TrainingResult


@dataclass(frozen=True, kw_only=True)
class L1Sparse(GradientMethod):
    """Training on the retain set under an l1 penalty."""

    gamma: Annotated[float, "weight of the l1 norm of all weights in the first epoch"] = 5e-5

    defaults_of: ClassVar[dict[str, dict[str, Any]]] = RETAINING

    def check(self, task: Task) -> None:
        """Also: the penalty is none below zero."""
        super().check(task)
        if not 0 <= self.gamma < float("inf"):
            raise OptionError(f"--gamma {self.gamma} must be at least 0")

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Minimise the loss over a number of steps that the schedule knows."""
        return super(L1Sparse, replace(self, steps=self.loop_of(job).steps)).erase(model, job)

    def penalty(self, step: int) -> float:
        """The weight of the l1 norm in `step`, of `steps` in all."""
        epochs = self.epochs or self.steps
        return self.gamma * (1 - int(step * epochs / self.steps) / epochs)

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """The loss on retain images and the l1 norm of the weights."""
        retain = model.examples(draws.retain, draws.generator, condition_drop=True)
        retain_loss = model.per_sample_loss(retain.part(draws.step.part, draws.step.parts)).mean()
        norm = torch.stack([p.abs().sum() for n, p in model.network.named_parameters() if self.trains(n)]).sum()
        return {"loss": retain_loss + self.penalty(draws.step.index) * norm, "retain": retain_loss, "l1": norm.detach()}
