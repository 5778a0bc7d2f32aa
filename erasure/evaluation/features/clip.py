"""CLIP (Radford et al., 2021): embeddings of images and of texts in one space, and the CLIP score.

The score is that of Hessel et al. (2021), 100 * max(cos, 0), without the factor 2.5 of their CLIPScore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.errors import DataError, ModelError
from erasure.evaluation.features.networks import BATCH_SIZE, LOCAL, first_line, folder_of, load_network
from erasure.evaluation.features.preprocessing import ImagePreprocessor, hash_of
from erasure.models.prompt_encoding import token_ids

TOKENIZERS = ("tokenizer.json", "vocab.json")  # either is a whole vocabulary


@dataclass(frozen=True)
class ClipModel:
    """A CLIPModel with its tokenizer and its preprocessor."""

    network: Any
    tokenizer: Any
    preprocessor: ImagePreprocessor
    source: str

    @property
    def hash(self) -> str:
        """SHA-256 of the weights and of how images are prepared."""
        return hash_of(self.network, self.preprocessor)


def load_clip(given: str, device: torch.device | str = "cpu") -> ClipModel:
    """The CLIP model in a folder or under a hub id; raises ModelError when it is missing, damaged or another model."""
    from transformers import CLIPModel, CLIPTokenizer

    folder = folder_of(given, "clip", "CLIP model")
    network = load_network(CLIPModel, folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"{folder} has no tokenizer: expected {' or '.join(TOKENIZERS)}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), **LOCAL)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ModelError(f"the tokenizer in {folder} is damaged: {first_line(error)}") from error
    # Folders without tokenizer_config.json leave the window open.
    tokenizer.model_max_length = network.config.text_config.max_position_embeddings
    return ClipModel(network.to(torch.device(device)), tokenizer, ImagePreprocessor.of(folder), given)


@torch.no_grad()
def clip_image_features(model: ClipModel, images: np.ndarray) -> Tensor:
    """Projected embeddings (n, d) of uint8 images (n, h, w, 3), not normalised, on the CPU."""
    parts = []
    for i in range(0, max(len(images), 1), BATCH_SIZE):
        pixels = model.preprocessor(images[i : i + BATCH_SIZE], model.network.device)
        pooled = model.network.vision_model(pixel_values=pixels).pooler_output
        parts.append(model.network.visual_projection(pooled).cpu())
    return torch.cat(parts)


@torch.no_grad()
def clip_text_features(model: ClipModel, prompts: Sequence[str]) -> Tensor:
    """Projected embeddings (n, d) of texts, not normalised, on the CPU; longer texts are cut, with a warning."""
    parts = []
    for i in range(0, len(prompts), BATCH_SIZE):
        ids = token_ids(model.tokenizer, prompts[i : i + BATCH_SIZE]).to(model.network.device)
        pooled = model.network.text_model(input_ids=ids).pooler_output
        parts.append(model.network.text_projection(pooled).cpu())
    return torch.cat(parts)


def clip_scores(model: ClipModel, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """CLIP score (n,) of each image with its own prompt: 100 * max(cos, 0) of their projected embeddings.

    Raises DataError unless each image has a prompt. Hessel et al., 2021, whose CLIPScore is 2.5 * max(cos, 0).
    """
    if len(images) != len(prompts):
        raise DataError(f"{len(images)} images and {len(prompts)} prompts: expected one prompt for each image")
    return clip_text_scores(model, clip_image_features(model, images), prompts)


def clip_text_scores(model: ClipModel, embedded: Tensor, prompts: Sequence[str]) -> np.ndarray:
    """CLIP score (n,) of each embedded image (n, d) with its own prompt."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    text = clip_text_features(model, list(place))[[place[prompt] for prompt in prompts]]
    return 100 * nn.functional.cosine_similarity(embedded.double(), text.double()).clamp(min=0).numpy()
