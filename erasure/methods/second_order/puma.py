"""puma: remove the forget set and reweight the rest so that given losses stay as they are (Wu et al., 2022).

For criteria C_k to be kept: s_k = A^-1 grad C_k, psi_ki = s_k . g_i is what sample i's removal adds to n C_k. With Psi
the rows of criteria that removal would harm (sum_f psi_k > 0), the retain samples' weights change by
lambda = Psi_r^T (Psi_r Psi_r^T + omega I)^-1 sum_f Psi_f; one more solve gives the step
theta + eta A^-1 (1/n) [sum_f g - sum_r lambda_j g_j]; https://arxiv.org/abs/2203.00846.

A criterion that removal would improve is ignored (lambda = 0), as keeping it would preserve the damage. By design the
result keeps the criteria and does not approach retraining. C_k is the mean loss of one class, or of all samples at
once, of the retain set, or of data that the network was not trained on (`--validation`), which is the better choice: at
the optimum the gradient of all retain samples is minus that of the forget set, which adds no information. Each
criterion costs the solution of one system.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data import load_dataset
from erasure.data.task import Task
from erasure.methods.second_order.base import OneStep, View
from erasure.training.curvature import Curvature, solve


@dataclass(frozen=True, kw_only=True)
class Puma(OneStep):
    """Removal with reweighting."""

    curvature: Annotated[Curvature, "A: empirical Fisher (woodfisher), or Hessian"] = "hessian"
    damping: Annotated[float, "added to the diagonal of the curvature, delta"] = 1e-2
    criteria: Annotated[Literal["classes", "all"], "losses to keep: that of each class, or that of all samples"] = (
        "classes"
    )
    validation: Annotated[
        str, "data whose test split gives the criteria and can then not test the result; empty: retain samples"
    ] = ""
    omega: Annotated[float, "ridge of the reweighting; a larger one compensates less"] = 1e-3

    def check(self, task: Task) -> None:
        """Also raise OptionError for a ridge that is not above 0."""
        super().check(task)
        if not 0 < self.omega < float("inf"):
            raise OptionError(f"--omega {self.omega} must be above 0")

    def right(self, view: View) -> Tensor:
        """Return (1/n) [sum_f g - sum_r lambda_j g_j]."""
        num_forget, num_retain = len(view.forget), len(view.retain)
        rows, totals = [], []
        for criterion in self._criteria(view):
            found = solve(view.product, criterion, self.steps, self.tolerance)
            rows.append(view.retain.products(found))
            totals.append(view.forget.products(found).sum())
        weights = reweighted(torch.stack(rows), torch.stack(totals), self.omega)
        removed = view.forget.gradient().mul_(num_forget)
        return removed.sub_(view.retain.gradient(weights.to(removed)), alpha=num_retain).div_(num_forget + num_retain)

    def _criteria(self, view: View) -> Iterator[Tensor]:
        """The gradient of each criterion, (size,)."""
        data = load_dataset(self.validation, "test") if self.validation else view.job.retain
        groups = [data]
        if self.criteria == "classes":
            groups = [data.of_classes([int(label)]) for label in np.unique(view.job.retain.labels)]
        for group in groups:
            yield view.losses(group, "criterion").gradient()


def reweighted(rows: Tensor, totals: Tensor, omega: float) -> Tensor:
    """lambda (n,), in float64, from `rows` psi (criteria, n) of retain samples and the forget set's `totals`.

    Criteria whose total is not positive are left out; 0 where none remains.
    """
    harmed = totals > 0
    rows, totals = rows[harmed].double(), totals[harmed].double()
    gram = rows @ rows.T + omega * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return rows.T @ torch.linalg.solve(gram, totals)
