"""salun_soft: random-label unlearning with a soft threshold in place of a mask (Fan et al., 2024, section 4).

After every step t of T, with D = theta - theta_0 and tau the k-th smallest |D|, k = p n (T - t) / T, the proximal
operator of an l1 norm: D <- sign(D) max(|D| - tau, 0). theta_0 stays the original for the whole run, so the k weights
that changed least return to their original values; k falls linearly to 0 (the official code's schedule).
https://arxiv.org/abs/2310.12508. The loss is SalUn's. With a mask, n counts the trainable weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.methods.base import Job, TrainingSetup
from erasure.methods.relabeling.base import Relabeling
from erasure.models import Model
from erasure.training.curvature import WeightSpace
from erasure.training.loop import Projection


@dataclass(frozen=True, kw_only=True)
class SalUnSoft(Relabeling):
    """Relabelling with a soft threshold on the change of each weight."""

    held: Annotated[float, "share of the weights that the threshold resets at the start, p"] = 0.5

    def check(self, task: Task) -> None:
        """Also raise OptionError for a share outside [0, 1]."""
        super().check(task)
        if not 0 <= self.held <= 1:
            raise OptionError(f"--held {self.held} is outside [0, 1]")

    @contextmanager
    def prepared(self, model: Model, job: Job) -> Iterator[TrainingSetup]:
        """Shrink the change of the weights after every step."""
        space = WeightSpace(model.network, job.mask, self.trains)
        steps = self.training_config(self.images_per_epoch(job)).steps
        yield TrainingSetup(job, project=self._soft_threshold(space, steps))

    def _soft_threshold(self, space: WeightSpace, steps: int) -> Projection:
        original = space.values()

        def project(done: int) -> Mapping[str, float]:
            count = int(self.held * space.size * (steps - done) / steps)
            change, threshold = shrunk(space.values() - original, count)
            space.write(torch.where(change == 0, original, original + change))
            return {"held": count, "threshold": threshold}

        return project


def shrunk(change: Tensor, count: int) -> tuple[Tensor, float]:
    """`change` (n,) moved towards zero by its `count`-th smallest magnitude; and that magnitude, 0 for a count of 0."""
    if count == 0:
        return change, 0.0
    magnitude = change.abs()
    threshold = magnitude.kthvalue(count).values
    return change.sign() * (magnitude - threshold).clamp_(min=0), float(threshold)
