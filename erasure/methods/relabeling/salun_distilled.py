"""salun_distilled: SalUn whose retained answers are the original's and not the data's (ours, after Fan et al., 2024).

L = mean |e(x_t, c) - e_0(x_t, c')|^2 over forget images + alpha * mean |e(x_t, c_r) - e_0(x_t, c_r)|^2 over
retain images, under SalUn's mask (Fan et al., 2024, https://arxiv.org/abs/2310.12508). SalUn's retain loss asks for
the noise that was drawn: what no network can know of it stays in every gradient and pushes the weights about, the
longer the further. Here the frozen original answers (Hinton et al., 2015): at the first step the retain gradient is
zero, and afterwards it is the change of the kept answers and nothing else, so that alpha may be larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from erasure.core.errors import NotApplicableError
from erasure.methods.relabeling.base import Relabeling
from erasure.models import DiffusionModel, Examples, Model


@dataclass(frozen=True, kw_only=True)
class SalUnDistilled(Relabeling):
    """Relabelling under a saliency mask, with the frozen original as the retain set's teacher."""

    default_mask: ClassVar[str] = "saliency"
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        family: {**values, "alpha": 3.0} for family, values in Relabeling.defaults_of.items() if family != "classifier"
    }

    alpha: Annotated[float, "weight of the distance to the original's answers on the retain set; both are means"] = 3.0

    def check_model(self, model: Model) -> None:
        """It is a diffusion model."""
        super().check_model(model)
        if not isinstance(model, DiffusionModel):
            raise NotApplicableError(
                "salun_distilled spares a diffusion model the noise of its retain loss, and a classifier's labels have "
                "none: use salun"
            )

    def kept(self, retain: Examples, frozen: Model) -> Examples:
        """The retain examples with the original's answers."""
        with torch.no_grad():
            return retain._replace(target=frozen.prediction(retain.inputs).float())
