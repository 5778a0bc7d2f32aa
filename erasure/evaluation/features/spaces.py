"""Feature spaces: the networks in whose features image distances are taken, found by the path or id that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from erasure.core.distributed import is_main
from erasure.core.errors import NotApplicableError
from erasure.core.run_dir import cache_folder, fingerprint
from erasure.data import Dataset
from erasure.data.images import to_float
from erasure.evaluation.features.clip import clip_image_features, load_clip
from erasure.evaluation.features.dinov2 import dinov2_features, load_dinov2
from erasure.evaluation.features.inception import inception_features, inception_file, load_inception
from erasure.evaluation.features.networks import BATCH_SIZE
from erasure.formats.safetensors_io import hash_tensors, read_tensors, write_tensors

Space = Literal["inception", "clip", "dinov2"]
Embedder = Callable[[np.ndarray], np.ndarray]
MODELS = {"clip": "CLIP", "dinov2": "DINOv2"}


class Embedding(NamedTuple):
    """A space: `embed` maps uint8 images (n, h, w, c) to features (n, d) float64, `hash` is that of the network."""

    embed: Embedder
    hash: Callable[[], str]


def need_network(space: Space, given: str | None) -> None:
    """Raise NotApplicableError unless a space's network was named; Inception's may also lie in torch.hub's cache."""
    if space == "inception":
        inception_file(given)
    elif given is None:
        raise NotApplicableError(f"no {MODELS[space]} model was named: give --{space}, a folder or a hub id")


def embedding(space: Space, given: str | None, device: torch.device) -> Embedding:
    """The space of the network that `given` names.

    Raises NotApplicableError when it names none, ModelError for a damaged file or another network.
    """
    if space == "inception":
        return _inception(given, device)
    need_network(space, given)
    assert given is not None
    if space == "dinov2":
        dinov2 = load_dinov2(given, device)
        return Embedding(lambda images: dinov2_features(dinov2, images), lambda: dinov2.hash)
    clip = load_clip(given, device)
    return Embedding(lambda images: normalize(clip_image_features(clip, images).double()).numpy(), lambda: clip.hash)


def _inception(given: str | None, device: torch.device) -> Embedding:
    inception = load_inception(given).to(device)

    def embed(images: np.ndarray) -> np.ndarray:
        parts = [images[i : i + BATCH_SIZE] for i in range(0, len(images), BATCH_SIZE)]
        return np.concatenate([inception_features(inception, to_float(part), BATCH_SIZE) for part in parts])

    return Embedding(embed, lambda: hash_tensors(inception.state_dict()))


def cached_features(reference: Dataset, network_hash: str, embed: Embedder) -> np.ndarray:
    """Features (m, d) of a data set's images: computed once, then read from the user's cache."""
    key = fingerprint({"images": reference.hash, "judge": network_hash})
    path = cache_folder() / "features" / f"{key[:32]}.safetensors"
    if path.is_file():
        return read_tensors(path)[0]["features"].numpy()
    features = embed(reference.images)
    if is_main():
        write_tensors(path, {"features": torch.from_numpy(features)})
    return features
