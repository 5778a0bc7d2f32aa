"""negative_prompt: sample with the concept as negative prompt, no weight changes (Ho and Salimans, 2022).

e(S) + g (e(c) - e(S)) for e(0) + g (e(c) - e(0)), the classifier-free guidance of https://arxiv.org/abs/2207.12598 with
the concept S in place of the empty prompt; every text-to-image tool has it. It is a reference, not an erasure: the
weights are the original's, and any other program generates the concept from them. Several concepts are joined by commas
to one text; of several classes the mean prediction is used. Without guidance (g = 1) it has no effect and is refused.
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
        """Return the concept alone; the distance follows from the guidance scale."""
        return Steering("negative_prompt", **about)

    def check_model(self, model: Model) -> None:
        """Also raise NotApplicableError for a model that samples without guidance."""
        super().check_model(model)
        assert isinstance(model, DiffusionModel)
        if {**model.sampling, **model.info.get("sampling", {})}["guidance_scale"] == 1.0:
            raise NotApplicableError(
                f"{model.source or 'this model'} samples with guidance scale 1, where a negative prompt has no "
                "effect: use --method sld"
            )
