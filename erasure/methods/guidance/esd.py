"""esd: train predictions for the concept to lead away from it, without any image (Gandikota et al., 2023).

L = |e(z_t, c) - (e_0(z_t, 0) - eta (e_0(z_t, c) - e_0(z_t, 0)))|^2, eq. 7 and 8 of https://arxiv.org/abs/2303.07345.
z_t is a sample of c that the network in training generates under guidance 3, stopped at a random one of 50 steps.
`--preset x` trains cross-attention (for styles), `--preset u` everything else (for objects and nudity, the default
where a network has cross-attention), `--preset full` everything. On a class-conditional network the null class takes
the place of the empty prompt.

We depart from the official code in that the loss is taken at the timestep that the sample has reached, not at a random
one within its step, and a batch may have several samples, each with its own stop. FLUX.1 dev, whose input includes the
guidance scale, makes both predictions of the target at scale 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from erasure.methods.base import Options
from erasure.methods.guidance.base import NegativeGuidance


@dataclass(frozen=True, kw_only=True)
class ESD(NegativeGuidance):
    """Negative guidance learned by the network's own weights."""

    presets: ClassVar[Mapping[str, Options]] = {
        "x": {"weights": "attn2"},
        "u": {"weights": "not-attn2"},
        "full": {"weights": "all"},
    }
    defaults_of: ClassVar[Mapping[str, Options]] = dict.fromkeys(("stable_diffusion", "sdxl"), presets["u"])

    learning_rate: Annotated[float, "learning rate"] = 1e-5
