"""Samples: a model and its classes become PNG files on disk, resumable, shared between processes.

Image i of class c depends on the seed, c and i alone: not on the batch, not on the other classes asked for, and equally
for two models, which makes samples of an original and an erased model pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from erasure.errors import NotApplicableError, OptionError
from erasure.images import read_image, to_uint8, write_png
from erasure.models import DiffusionModel
from erasure.seeds import derive

UNCONDITIONAL = -1
DRAWING = 1  # raised whenever the same seed begins to give another image


@dataclass(frozen=True)
class SampleSettings:
    """How images are drawn; what is left at its default follows the model's own settings."""

    num_images: Annotated[int, "images a class"] = 50
    guidance_scale: Annotated[float | None, "classifier-free guidance, 1 for none"] = None
    num_inference_steps: Annotated[int | None, "denoising steps"] = None
    eta: Annotated[float | None, "share of fresh noise in each step: 0 DDIM, 1 DDPM"] = None
    sample_batch_size: Annotated[int, "images drawn at once"] = 128

    def overrides(self) -> dict[str, float]:
        """What differs from the model's own settings."""
        chosen = {
            key: value for key, value in asdict(self).items() if key in ("guidance_scale", "num_inference_steps", "eta")
        }
        return {key: value for key, value in chosen.items() if value is not None}

    def check(self) -> None:
        """Raise OptionError for a value outside its range."""
        if (
            self.num_images < 1
            or self.sample_batch_size < 1
            or (self.num_inference_steps is not None and self.num_inference_steps < 1)
        ):
            raise OptionError("--num-images, --num-inference-steps and --sample-batch-size must be at least 1")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise OptionError(f"--eta {self.eta} is outside [0, 1]: 0 is DDIM, 1 is DDPM")


@dataclass(frozen=True)
class Samples:
    """Images uint8 (n, h, w, c) with the class each was asked for, (n,); -1 where the model takes none."""

    images: np.ndarray
    labels: np.ndarray


def draw(model: DiffusionModel, classes: Sequence[int], settings: SampleSettings, seed: int, folder: Path) -> Samples:
    """`settings.num_images` images of each class as `<folder>/<class name>/NNNNN.png`; files that exist are kept.

    `folder` must belong to this model, seed and settings.
    """
    settings.check()
    chosen = list(classes) if model.conditional else [UNCONDITIONAL]
    wanted = [(label, i) for label in chosen for i in range(settings.num_images)]
    state = PartialState()
    # The same batches whatever is missing and whoever draws them, so that a resumed image has the same bits.
    batches = [wanted[i : i + settings.sample_batch_size] for i in range(0, len(wanted), settings.sample_batch_size)]
    for batch in tqdm(batches[state.process_index :: state.num_processes], desc="sample", disable=None, leave=False):
        missing = {item for item in batch if not path_of(model, folder, *item).is_file()}
        if not missing:
            continue
        labels = torch.tensor([max(0, label) for label, _ in batch])
        seeds = [derive(seed, "sample", label, i) for label, i in batch]
        for item, image in zip(batch, to_uint8(model.generate(labels, seeds, **settings.overrides())), strict=True):
            if item in missing:
                write_png(path_of(model, folder, *item), image)
    state.wait_for_everyone()
    channels = model.image_shape[0]
    images = [read_image(path, str(path), channels) for path in (path_of(model, folder, *item) for item in wanted)]
    return Samples(np.stack(images), np.array([label for label, _ in wanted], dtype=np.int64))


def path_of(model: DiffusionModel, folder: Path, label: int, index: int) -> Path:
    """Where image `index` of class `label` is kept."""
    if label == UNCONDITIONAL:
        name = "unconditional"
    else:
        name = model.class_names[label] if model.class_names else f"class-{label}"
        name = re.sub(r"[^\w .,()-]|^\.+", "_", name)
    return folder / name / f"{index:05d}.png"


def check_classes(model: DiffusionModel, classes: Sequence[int]) -> None:
    """Raise when classes are asked of a model that takes none."""
    if classes and not model.conditional:
        raise NotApplicableError(f"{model.source} is unconditional: it takes no --classes")
