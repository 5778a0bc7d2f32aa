"""influence: one Newton step that removes the forget set's influence on the weights (the IU row of Fan et al., 2024).

theta + eta A^-1 b, b = (1/N) sum_f g - N_f / (N N_r) sum_r g: the change of the weighted training loss when the weight
of forget samples moves to the rest (Koh and Liang, 2017; Jia et al., 2023, eq. 4; https://arxiv.org/abs/2304.04934).
With A the Hessian of the retain loss and eta = 1 it is the Newton step to retraining, exact for a quadratic loss.

A is the empirical Fisher of 1,000 retain samples (WoodFisher) plus the identity, with which the official recursion
starts too, or the Hessian. That recursion keeps one vector in place of the inverse, so it does not invert this matrix:
here the system is solved. Fan et al. search a factor in 1 to 20, here eta (`--step-length`, where trying several costs
little more than one).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from erasure.methods.second_order.base import OneStep, View


@dataclass(frozen=True, kw_only=True)
class Influence(OneStep):
    """Influence unlearning."""

    def right(self, view: View) -> Tensor:
        """Return N_f / N times the forget gradient minus the retain gradient, both means."""
        share = len(view.forget) / (len(view.forget) + len(view.retain))
        return (view.forget.gradient() - view.retain.gradient()).mul_(share)
