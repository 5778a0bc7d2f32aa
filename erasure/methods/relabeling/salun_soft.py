"""salun_soft: random-label unlearning whose mask finds itself, by a soft threshold (Fan et al., 2024, section 4).

After every step t of T, with D = theta - theta_0 and tau the k-th smallest |D|, k = p n (T - t) / T, the proximal
operator of an l1 norm: D <- sign(D) max(|D| - tau, 0). theta_0 stays the original for the whole run, so that the k
weights that moved least are the original's again; k falls in a line to 0 (the official code's schedule).
https://arxiv.org/abs/2310.12508. The loss is SalUn's. Under a mask, n counts the weights that it leaves free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.methods.base import Job
from erasure.methods.relabeling.base import Relabeling
from erasure.models import Model
from erasure.training.curvature import WeightSpace
from erasure.training.loop import TrainingResult


@dataclass(frozen=True, kw_only=True)
class SalUnSoft(Relabeling):
    """Relabelling with a soft threshold on the change of each weight."""

    held: Annotated[float, "share of the weights that the threshold holds at the start, p"] = 0.5

    def check(self, task: Task) -> None:
        """Also: the share is one."""
        super().check(task)
        if not 0 <= self.held <= 1:
            raise OptionError(f"--held {self.held} is outside [0, 1]")

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Minimise the loss, and shrink the change of the weights after every step."""
        space = WeightSpace(model.network, job.mask, self.trains)
        shrink = self._shrinking(space, self.loop_of(job).steps, job.on_step)
        # A weight that a mask splits off lives in the optimiser; a lean one reads the network's again for every step.
        method = self if job.mask is None else replace(self, lean_optimizer=True)
        outcome = super(SalUnSoft, method).erase(model, replace(job, on_step=shrink))
        return replace(outcome, seconds=outcome.seconds + sum(r["shrink_seconds"] for r in outcome.records))

    def _shrinking(
        self, space: WeightSpace, steps: int, on_step: Callable[[int], Mapping[str, Any]] | None
    ) -> Callable[[int], Mapping[str, Any]]:
        anchor = space.values()

        def shrink(done: int) -> Mapping[str, Any]:
            began = time.perf_counter()
            count = int(self.held * space.size * (steps - done) / steps)
            change, threshold = shrunk(space.values() - anchor, count)
            space.write(torch.where(change == 0, anchor, anchor + change))
            seconds = time.perf_counter() - began
            told = {"held": count, "threshold": threshold, "shrink_seconds": seconds}
            return told if on_step is None else {**told, **on_step(done)}

        return shrink


def shrunk(change: Tensor, count: int) -> tuple[Tensor, float]:
    """`change` (n,) less its `count`-th smallest magnitude, toward zero; and that magnitude, 0 for a count of 0."""
    if count == 0:
        return change, 0.0
    size = change.abs()
    threshold = size.kthvalue(count).values
    return change.sign() * (size - threshold).clamp_(min=0), float(threshold)
