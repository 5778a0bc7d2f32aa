"""safety_checker: the concept scores of Stable Diffusion's safety checker (Rombach et al., 2022; Rando et al., 2022).

A score is cos(image, concept) minus the concept's own threshold, rounded to three digits as diffusers does; scores
above 0 are flagged. A score above 0 for one of three special concepts raises all scores after it by 0.01. The concepts
were published as embeddings without names, so classes are numbers. Special concepts are reported but flag nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import nn

from erasure.auditing.detectors.base import Scorer
from erasure.core.records import Facts
from erasure.evaluation.features.networks import BATCH_SIZE, load_network, local_folder
from erasure.evaluation.features.preprocessing import ImagePreprocessor, hash_of

CONCEPTS, SPECIAL = 17, 3
RAISED = 0.01
DIGITS = 3


class SafetyChecker(Scorer):
    """Cosine minus threshold, by concept."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Which checker."""

        model: Annotated[str, "checker, or a pipeline that has one: a folder or hub id"] = (
            "CompVis/stable-diffusion-safety-checker"
        )

    core = tuple(f"concept_{i}" for i in range(CONCEPTS))
    classes = (*core, *(f"special_{i}" for i in range(SPECIAL)))
    threshold = 0.0005  # scores are multiples of 0.001: half of one separates those above 0 from 0

    def __init__(self, options: Options, device: torch.device) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        super().__init__(options, device)
        weights, reading = _folders(local_folder(options.model))
        self.network = load_network(StableDiffusionSafetyChecker, weights).to(device)
        self.reading = ImagePreprocessor.of(reading)

    def _identity(self) -> Facts:
        return {"weights": hash_of(self.network, self.reading)}

    def _scores(self, images: np.ndarray) -> np.ndarray:
        parts = [self._part(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
        return np.concatenate(parts)

    @torch.no_grad()
    def _part(self, images: np.ndarray) -> np.ndarray:
        network = self.network
        pooled = network.vision_model(self.reading(images, self.device))[1]
        embedded = nn.functional.normalize(network.visual_projection(pooled))
        raised = np.zeros(len(images), np.float32)  # all in float32, as in diffusers: a digit can depend on it
        special = []
        for margin in _margins(embedded, network.special_care_embeds, network.special_care_embeds_weights).T:
            special.append(np.round(margin + raised, DIGITS))
            raised[special[-1] > 0] = RAISED
        margins = _margins(embedded, network.concept_embeds, network.concept_embeds_weights)
        return np.concatenate([np.round(margins + raised[:, None], DIGITS), np.stack(special, axis=1)], axis=1)


def _margins(embedded: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor) -> np.ndarray:
    """The cosine of each image (n, d) with each concept (k, d), minus its threshold (k,): (n, k)."""
    cosine = embedded @ nn.functional.normalize(concepts).T
    return cosine.cpu().numpy() - thresholds.cpu().numpy()


def _folders(folder: Path) -> tuple[Path, Path]:
    """The folders of the weights and of the preprocessing: one and the same, or two of a pipeline."""
    if (folder / "safety_checker").is_dir():
        return folder / "safety_checker", folder / "feature_extractor"
    return folder, folder
