"""DINOv2 (Oquab et al., 2023): features of images that were learnt without labels or captions.

They are the space in which Fréchet distances agree best with people (Stein et al., 2023). The network is read from a
folder or hub id of transformers, such as `facebook/dinov2-large`, the size that they chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from erasure.evaluation.features.networks import BATCH_SIZE, folder_of, load_network
from erasure.evaluation.features.preprocessing import ImagePreprocessor, hash_of


@dataclass(frozen=True)
class DINOv2:
    """A Dinov2Model with its preprocessor."""

    network: Any
    preprocessor: ImagePreprocessor
    source: str

    @property
    def hash(self) -> str:
        """SHA-256 of the weights and of how images are prepared."""
        return hash_of(self.network, self.preprocessor)


def load_dinov2(given: str, device: torch.device | str = "cpu") -> DINOv2:
    """The DINOv2 in a folder or under a hub id; raises ModelError when it is missing, damaged or another model."""
    from transformers import Dinov2Model

    folder = folder_of(given, "dinov2", "DINOv2")
    network = load_network(Dinov2Model, folder)
    return DINOv2(network.to(torch.device(device)), ImagePreprocessor.of(folder), given)


@torch.no_grad()
def dinov2_features(model: DINOv2, images: np.ndarray) -> np.ndarray:
    """Features (n, d) of uint8 images (n, h, w, 3): the class token after the last layer norm, float64.

    Images are prepared as the model's own processor says: those of `facebook` bring the shorter side to 256 and keep
    the 224 x 224 in the middle, where Stein et al. squeeze the whole image to 224 x 224.
    """
    parts = []
    for i in range(0, max(len(images), 1), BATCH_SIZE):
        pixels = model.preprocessor(images[i : i + BATCH_SIZE], model.network.device)
        parts.append(model.network(pixel_values=pixels).last_hidden_state[:, 0].cpu())
    return torch.cat(parts).double().numpy()
