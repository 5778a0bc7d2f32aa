"""esd: predictions for the concept become those that lead away from it, without an image (Gandikota et al., 2023).

L = |e(z_t, c) - (e_0(z_t, 0) - eta (e_0(z_t, c) - e_0(z_t, 0)))|^2, eq. 7 and 8 of https://arxiv.org/abs/2303.07345.
z_t is what the student itself draws of c under guidance 3, stopped at a random one of 50 steps. `--preset x` trains
cross-attention (for styles), `--preset u` all but that (for objects and nudity, the default where a network has
cross-attention), `--preset full` everything. A class-conditional network's null class stands for the empty prompt.

We depart from the official code in that the loss is taken at the very timestep where the sample stands, not at a random
one within its step, and a batch may hold several samples, each with its own stop. FLUX.1 dev, which is told a scale, is
asked at scale 1 for both predictions of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from erasure.methods.guidance.base import NegativeGuidance


@dataclass(frozen=True, kw_only=True)
class ESD(NegativeGuidance):
    """Negative guidance learned by the network's own weights."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "x": {"weights": "attn2"},
        "u": {"weights": "not-attn2"},
        "full": {"weights": "all"},
    }
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = dict.fromkeys(("stable_diffusion", "sdxl"), presets["u"])

    learning_rate: Annotated[float, "step size"] = 1e-5
