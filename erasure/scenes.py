"""Scenes: what the demonstration erases, from which shipped model, and beside which controls. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One row of a scene's full table."""

    name: str
    method: str
    mask: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    once: bool = False


@dataclass(frozen=True)
class Scene:
    """One erasure and its controls; `num_images` are drawn of each class or prompt to judge it."""

    title: str
    model: str
    variants: tuple[Variant, ...]
    num_images: int
    forget: str | None = None
    concept: str | None = None
    num_inference_steps: int | None = None
    probe_every: int = 5
    material: Mapping[str, Any] = field(default_factory=dict)
    shown: bool = False  # part of the short demonstration

    def folder_of(self, variant: Variant) -> str:
        """The variant's folder inside the scene's."""
        return variant.name.lower().replace(" ", "-")


CLASS_VARIANTS = (
    Variant("SalUn", "salun"),
    Variant("no mask", "salun", "none"),
    Variant("random mask", "salun", "random"),
    Variant("inverted mask", "salun", "inverted"),
    Variant("gradient ascent", "gradient_ascent"),
    Variant("finetune", "finetune"),
    Variant("retrain", "retrain", once=True),
)
PROMPT_VARIANTS = (
    Variant("SalUn", "salun"),
    Variant("no mask", "salun", "none"),
    Variant("random mask", "salun", "random"),
    Variant("attn2 only", "salun", "none", {"weights": "attn2"}),
)


def _of_prompts(title: str, concept: str, shown: bool = False) -> Scene:
    """A concept erased from digits-sd, which draws as well in 15 steps as in 30."""
    return Scene(
        title,
        "digits-sd",
        PROMPT_VARIANTS,
        num_images=4,
        concept=concept,
        num_inference_steps=15,
        probe_every=10,
        shown=shown,
    )


SCENES = {
    "ddpm-three": Scene(
        "the digit three, class-conditional DDPM", "digits-ddpm", CLASS_VARIANTS, 100, forget="three", shown=True
    ),
    "sd-three": _of_prompts("the digit three, Stable Diffusion", "digits/three", shown=True),
    "sd-neon": _of_prompts("the neon style, Stable Diffusion", "digits/neon"),
    "sd-both": _of_prompts("three and neon in one run, Stable Diffusion", "digits/three,digits/neon"),
}
