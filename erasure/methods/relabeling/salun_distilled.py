"""salun_distilled: SalUn whose retain targets are the original's predictions (ours, after Fan et al., 2024).

L = mean |e(x_t, c) - e_0(x_t, c')|^2 over forget images + alpha * mean |e(x_t, c_r) - e_0(x_t, c_r)|^2 over
retain images, under SalUn's mask (Fan et al., 2024, https://arxiv.org/abs/2310.12508). The target of SalUn's retain
loss is the sampled noise: the part of it that no network can predict stays in every gradient and moves the weights at
random, further with every step. Here the target is the frozen original's prediction (Hinton et al., 2015): at the first
step the retain gradient is zero, and later it measures only how retained predictions have changed, so that alpha may be
larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from erasure.core.errors import NotApplicableError
from erasure.methods.base import Options
from erasure.methods.relabeling.base import Relabeling
from erasure.models import DiffusionModel, Examples, Model


@dataclass(frozen=True, kw_only=True)
class SalUnDistilled(Relabeling):
    """Relabelling under a saliency mask, with the frozen original as the retain set's teacher."""

    default_mask: ClassVar[str] = "saliency"
    defaults_of: ClassVar[Mapping[str, Options]] = {
        family: {**values, "alpha": 3.0} for family, values in Relabeling.defaults_of.items() if family != "classifier"
    }

    alpha: Annotated[float, "weight of the distance to the original's predictions on the retain set"] = 3.0

    def check_model(self, model: Model) -> None:
        """Also raise NotApplicableError for anything but a diffusion model."""
        super().check_model(model)
        if not isinstance(model, DiffusionModel):
            raise NotApplicableError(
                "salun_distilled removes the noise from a diffusion model's retain loss, and a classifier's labels "
                "have none: use salun"
            )

    def retain_targets(self, retain: Examples, original: Model) -> Examples:
        """The retain examples with the original's predictions as targets."""
        with torch.no_grad():
            return retain._replace(target=original.prediction(retain.inputs).float())
