"""negative_prompt: the concept in place of the empty prompt while drawing, no weight changes (Ho and Salimans, 2022).

e(S) + g (e(c) - e(S)) for e(0) + g (e(c) - e(0)), the classifier-free guidance of https://arxiv.org/abs/2207.12598 with
the concept S as what is led away from; every text-to-image tool has it. It is a reference, not an erasure: the weights
are the original's, and any other program draws the concept from them. Text of several concepts is joined by commas, of
several classes the mean of the answers is taken. Without guidance (g = 1) it has no effect, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from erasure.core.errors import NotApplicableError
from erasure.methods.guidance.inference_time import Steered
from erasure.models import DiffusionModel, Model
from erasure.models.guidance import Steering


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(Steered):
    """Guidance away from the concept in place of the empty prompt."""

    def steering(self, about: dict[str, Any]) -> Steering:
        """The concept alone; how far follows the guidance scale."""
        return Steering("negative_prompt", **about)

    def check_model(self, model: Model) -> None:
        """Also: it is drawn with guidance."""
        super().check_model(model)
        assert isinstance(model, DiffusionModel)
        if {**model.sampling, **model.info.get("sampling", {})}["guidance_scale"] == 1.0:
            raise NotApplicableError(
                f"{model.source or 'this model'} is drawn with guidance scale 1, where nothing negative has a part: "
                "use --method sld"
            )
