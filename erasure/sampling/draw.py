"""Samples: a model and its classes become PNG files on disk, resumable, shared between processes.

Image i of class c depends on the seed, c and i alone, and not on the batch or on other classes. So the images of an
original and of an erased model are pairs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from erasure.core.distributed import world
from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.logging import log_user, progress
from erasure.core.rng import derive_seed
from erasure.core.run_dir import cache_folder, fingerprint
from erasure.data.images import read_image, to_uint8, write_png
from erasure.models import DiffusionModel

UNCONDITIONAL = -1
IMAGES_A_CLASS = 50
IMAGES_A_PROMPT = 4
DRAWN_AT_ONCE = 1 << 17  # numbers in a batch of samples: 128 of 32 x 32 x 1, 8 of SD's latents, 2 of SDXL's
DRAWING = 1  # raised whenever the same seed begins to give another image


@dataclass(frozen=True)
class SamplingOptions:
    """How images are generated; a default follows the model's own settings."""

    num_images: Annotated[int, "images a class or prompt; 0: 50 a class, 4 a prompt"] = 0
    guidance_scale: Annotated[float | None, "classifier-free guidance, 1 for none"] = None
    num_inference_steps: Annotated[int | None, "denoising steps"] = None
    eta: Annotated[float | None, "share of fresh noise in each step: 0 DDIM, 1 DDPM"] = None
    sampler: Annotated[str | None, "ddim, pndm, lms, euler or dpmsolver"] = None
    sample_batch_size: Annotated[int, "images generated at once; 0: as many as their size allows, at most 128"] = 0

    def overrides(self) -> dict[str, Any]:
        """What differs from the model's own settings."""
        chosen = asdict(self)
        names = ("guidance_scale", "num_inference_steps", "eta", "sampler")
        return {key: chosen[key] for key in names if chosen[key] is not None}

    def check(self) -> None:
        """Raise OptionError for a value outside its range."""
        if (
            self.num_images < 0
            or self.sample_batch_size < 0
            or (self.num_inference_steps is not None and self.num_inference_steps < 1)
        ):
            raise OptionError(
                "--num-images and --sample-batch-size must be at least 0, --num-inference-steps at least 1"
            )
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise OptionError(f"--eta {self.eta} is outside [0, 1]: 0 is DDIM, 1 is DDPM")


@dataclass(frozen=True)
class LabeledImages:
    """Images uint8 (n, h, w, c) with the class of each, (n,); -1 where the model takes none."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class PlannedSample:
    """One image to generate: its label, its seed, and its file."""

    label: int
    seed: int
    path: Path


def draw(
    model: DiffusionModel, classes: Sequence[int], settings: SamplingOptions, seed: int, folder: Path
) -> LabeledImages:
    """`settings.num_images` images of each class as `<folder>/<class name>/NNNNN.png`; files that exist are kept.

    `folder` must belong to this model, seed and settings.
    """
    chosen = list(classes) if model.conditional else [UNCONDITIONAL]
    items = [
        PlannedSample(label, derive_seed(seed, "sample", label, i), path_of(model, folder, label, i))
        for label in chosen
        for i in range(settings.num_images or IMAGES_A_CLASS)
    ]
    return draw_items(model, items, settings)


def draw_items(
    model: DiffusionModel, items: Sequence[PlannedSample], settings: SamplingOptions, description: str = "sample"
) -> LabeledImages:
    """Read the images of `items`, after generating those that are missing; several processes share the work.

    The batches do not depend on what is missing or on the process, so that a resumed image has the same bits.
    """
    settings.check()
    state = world()
    size = settings.sample_batch_size or max(1, min(128, DRAWN_AT_ONCE // math.prod(model.sample_shape)))
    batches = [items[i : i + size] for i in range(0, len(items), size)]
    for batch in progress(batches[state.process_index :: state.num_processes], desc=description):
        missing = {item for item in batch if not item.path.is_file()}
        if not missing:
            continue
        labels = torch.tensor([max(0, item.label) for item in batch])
        generated = model.generate(labels, [item.seed for item in batch], **settings.overrides())
        for item, image in zip(batch, to_uint8(generated), strict=True):
            if item in missing:
                write_png(item.path, image)
    state.wait_for_everyone()
    channels = model.image_shape[0]
    images = [read_image(item.path, str(item.path), channels) for item in items]
    return LabeledImages(np.stack(images), np.array([item.label for item in items], dtype=np.int64))


def draw_for_training(
    model: DiffusionModel,
    parts_hash: str,
    asked: Sequence[tuple[int, str]],
    settings: SamplingOptions,
    seed: int,
    role: str,
) -> LabeledImages:
    """Generate an image for each (label, text) of `asked` with the model as it is, or read it from the user's cache.

    The cache is shared by calls with the same arguments; `role` says in messages what the images are for.
    """
    texts = [text for _, text in asked]
    how = {**asdict(settings), **model.sampling, **model.info.get("sampling", {}), **settings.overrides()}
    source = fingerprint({"unet": model.hash, "parts": parts_hash})
    key = fingerprint({"version": DRAWING, "model": source, "texts": texts, "seed": seed, **how})
    folder, before = cache_folder() / "generated" / key[:32], Counter[str]()
    items = []
    for i, (label, text) in enumerate(asked):
        items.append(PlannedSample(label, derive_seed(seed, "material", text, before[text]), folder / f"{i:05d}.png"))
        before[text] += 1
    missing = sum(not item.path.is_file() for item in items)
    if missing:
        log_user(f"generating {missing} of {len(items)} images {role}, kept in {folder}")
    return draw_items(model, items, settings, f"images {role}")


def path_of(model: DiffusionModel, folder: Path, label: int, index: int) -> Path:
    """The file of image `index` of class `label`."""
    name = "unconditional" if label == UNCONDITIONAL else model.name_of(label)
    return folder / re.sub(r"[^\w .,()-]|^\.+", "_", name) / f"{index:05d}.png"


def check_classes(model: DiffusionModel, classes: Sequence[int]) -> None:
    """Raise NotApplicableError for `classes` of a model that takes none."""
    if classes and not model.conditional:
        raise NotApplicableError(f"{model.source} is unconditional: it takes no --classes")
