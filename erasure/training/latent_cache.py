"""Latents: a data set as an autoencoder's moments, encoded once and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from erasure.core.distributed import is_main
from erasure.core.errors import ModelError
from erasure.core.logging import progress
from erasure.core.run_dir import cache_folder, fingerprint
from erasure.data import Dataset
from erasure.data.images import to_float
from erasure.formats.safetensors_io import hash_tensors, read_tensors, write_tensors

if TYPE_CHECKING:
    from erasure.models.stable_diffusion import StableDiffusion

BATCH = 8
KEPT_TOGETHER = 64


@dataclass(frozen=True)
class Latents(Dataset):
    """A Dataset whose samples are moments (n, 2 c, h, w); its images are left out."""

    moments: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def of(cls, model: StableDiffusion, dataset: Dataset, kept: Path | None = None) -> Self:
        """Every image of `dataset` encoded by the model's autoencoder; with `kept`, in files made once."""
        parts = [
            _part(model, dataset.images[i : i + KEPT_TOGETHER], kept / f"{i:06d}.safetensors" if kept else None)
            for i in progress(range(0, len(dataset), KEPT_TOGETHER), desc="encode")
        ]
        empty = np.empty((len(dataset), 0, 0, 0), np.uint8)
        return cls(dataset.name, dataset.split, empty, dataset.labels, dataset.class_names, moments=torch.cat(parts))

    @classmethod
    def joined(cls, parts: Sequence[Latents]) -> Self:
        """The samples of all parts, which share their class names."""
        return cls(
            "+".join(part.name for part in parts),
            parts[0].split,
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.labels for part in parts]),
            parts[0].class_names,
            moments=torch.cat([part.moments for part in parts]),
        )

    @property
    def hash(self) -> str:
        """SHA-256 of moments, labels and class names."""
        return fingerprint({"moments": hash_tensors({"": self.moments}), "data": super().hash})

    def samples(self, chosen: np.ndarray) -> Tensor:
        """Moments (b, 2 c, h, w) of the samples at positions `chosen` (b,)."""
        return self.moments[torch.from_numpy(chosen)]

    def of_classes(self, classes: Collection[int]) -> Self:
        """The samples whose label is one of `classes`."""
        kept = np.isin(self.labels, list(classes))
        return replace(
            self, images=self.images[kept], labels=self.labels[kept], moments=self.moments[torch.from_numpy(kept)]
        )


def encoded_once(model: StableDiffusion, dataset: Dataset, encoder: str) -> Latents:
    """`dataset` encoded by the autoencoder whose hash is `encoder`, or read from the cache."""
    key = fingerprint({"images": dataset.hash, "encoder": encoder})
    return Latents.of(model, dataset, cache_folder() / "latents" / key[:32])


def _part(model: StableDiffusion, images: np.ndarray, path: Path | None) -> Tensor:
    if path is not None and path.is_file():
        try:
            return read_tensors(path)[0]["moments"]
        except (ModelError, KeyError):
            path.unlink(missing_ok=True)
    moments = torch.cat([model.moments(to_float(images[i : i + BATCH])) for i in range(0, len(images), BATCH)])
    moments = moments.contiguous()  # as they will be read back: another layout would give other last bits
    if path is not None and is_main():
        write_tensors(path, {"moments": moments})
    return moments
