"""salun: relabelled fine-tuning of the weights that are salient for the forget set (Fan et al., 2024).

theta_u = m * theta + (1 - m) * theta_0, with m the top half of |dL_f / dtheta| (eq. 4) and the loss of eq. 5
(classifiers) and eq. 6 (diffusion models); https://arxiv.org/abs/2310.12508.

We depart from the official code where it departs from the paper: the teacher is the frozen original in evaluation mode,
the other label is drawn for each image, both losses are means, and gradients are masked before they are clipped.
`--preset official` sets all of this back (DDPM). On Stable Diffusion `--preset class` and `--preset nudity` are the
paper's two recipes (Adam 1e-5, batch 8; alpha 0.5 over five epochs of the forget images, or 0.1
over one), with the official mask: guidance 7.5 in its own convention, which is 8.5 in ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from erasure.methods.base import Options
from erasure.methods.relabeling.base import CLASS_RECIPE, Relabeling


@dataclass(frozen=True, kw_only=True)
class SalUn(Relabeling):
    """Random-label unlearning under a saliency mask."""

    default_mask: ClassVar[str] = "saliency"
    presets: ClassVar[Mapping[str, Options]] = {
        "official": {
            "teacher": "current",
            "relabel": "next",
            "alpha": 1e-3,
            "retain_reduction": "sum",
            "forget_condition_drop": True,
            "clip_before_mask": True,
            "saliency": {"score": "sum_abs", "clip_saliency": 1.0, "guidance_scale": 3.0},
        },
        "class": CLASS_RECIPE,
        "nudity": {**CLASS_RECIPE, "alpha": 0.1, "epochs": 1.0},
    }
