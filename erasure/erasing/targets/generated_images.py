"""Material: what a method trains on. Classes of a data set, or prompts with images that are given or generated.

Generated images and their encodings are kept in the user's cache, under a hash of all that decides them: a killed
command goes on where it stopped, and runs on the same model and concept share them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

from erasure.core.errors import DataError, OptionError
from erasure.core.files import require_disk_space
from erasure.core.logging import log_warning
from erasure.core.run_dir import cache_folder
from erasure.data import Dataset
from erasure.data.dataset import fit
from erasure.data.images import find_images, read_image
from erasure.data.task import Task
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.concept import Concept, Prompt
from erasure.sampling.draw import SamplingOptions, draw_for_training
from erasure.training.latent_cache import Latents, encoded_once

SAME = 1e-3  # predictions that differ by less than this share of their norm are the same


@dataclass(frozen=True)
class TrainingImageOptions:
    """Where the images behind prompts come from."""

    forget_images: Annotated[str | None, "folder of images of the concept (default: the model draws them itself)"] = (
        None
    )
    retain_images: Annotated[str | None, "folder of images of what is kept (default: the model draws them itself)"] = (
        None
    )
    num_forget_images: Annotated[int, "images the model draws of the concept"] = 200
    num_retain_images: Annotated[int, "images the model draws of what is kept"] = 200
    training_image_batch_size: Annotated[int, "images drawn at once for training"] = 8
    training_image_inference_steps: Annotated[int | None, "denoising steps of the images drawn for training"] = None

    def check(self) -> None:
        """Raise OptionError for a value outside its range."""
        if min(self.num_forget_images, self.num_retain_images, self.training_image_batch_size) < 1:
            raise OptionError(
                "--num-forget-images, --num-retain-images and --training-image-batch-size must be at least 1"
            )

    @property
    def num_drawn(self) -> dict[str, int]:
        """How many images the model draws for each role at most: those of no folder."""
        roles = ("forget", "retain")
        return {role: getattr(self, f"num_{role}_images") for role in roles if not getattr(self, f"{role}_images")}

    def sampling(self) -> SamplingOptions:
        """How the images are drawn."""
        return SamplingOptions(
            num_inference_steps=self.training_image_inference_steps, sample_batch_size=self.training_image_batch_size
        )


def text_task(concept: Concept) -> Task:
    """The concept's prompts as classes: its table, in its order."""
    table = tuple(text for text in concept.table() if text)
    forget = [prompt.text for prompt in concept.forget]
    return Task(
        table,
        tuple(range(len(forget))),
        anchors=tuple(table.index(prompt.anchor) if prompt.anchor else len(table) for prompt in concept.forget),
        title=concept.name,
    )


def text_training_images(
    model: StableDiffusion,
    concept: Concept,
    settings: TrainingImageOptions,
    seed: int,
    role: Literal["forget", "retain"],
) -> Latents:
    """Images of the concept's prompts of one role, encoded once by `model`, which is bound to all its prompts.

    Raises DataError for a folder without images, OutputError when the disk cannot hold what must be drawn.
    """
    task, parts_hash = text_task(concept), model.parts_hash
    prompts = getattr(concept, role)
    folder, count = getattr(settings, f"{role}_images"), getattr(settings, f"num_{role}_images")
    if folder is not None:
        dataset = _from_folder(Path(folder), prompts, task, model.image_shape[1], f"--{role}-images")
    else:
        _check_room(model, sum(settings.num_drawn.values()))
        dataset = _drawn(model, parts_hash, prompts, task, count, settings.sampling(), seed, role)
    return encoded_once(model, dataset, parts_hash)


def _drawn(
    model: StableDiffusion,
    parts_hash: str,
    prompts: Sequence[Prompt],
    task: Task,
    count: int,
    sampling: SamplingOptions,
    seed: int,
    role: str,
) -> Dataset:
    """`count` images that the model itself draws, spread evenly over the prompts."""
    texts = [prompts[i % len(prompts)].text for i in range(count)]
    asked = [(task.class_names.index(text), text) for text in texts]
    samples = draw_for_training(model, parts_hash, asked, sampling, seed, f"to {role}")
    return Dataset(f"generated-{role}", "train", samples.images, samples.labels, task.class_names)


def _check_room(model: StableDiffusion, missing: int) -> None:
    """Say before drawing when the images and their encodings will not fit on the disk."""
    latents = 2 * 4 * math.prod(model.sample_shape)
    require_disk_space(
        cache_folder(),
        missing * (math.prod(model.image_shape) + latents),
        f"drawing {missing} images",
        "set ERASURE_CACHE to another disk, or ask for fewer with --num-forget-images and --num-retain-images",
    )


def _from_folder(folder: Path, prompts: Sequence[Prompt], task: Task, size: int, flag: str) -> Dataset:
    """Every image below `folder`, under the prompts in turn."""
    paths = find_images(folder)
    if not paths:
        raise DataError(f"{flag} {folder} holds no images: expected a folder of .png or .jpg files")
    images = np.stack([fit(read_image(path, str(path), 3), size) for path in paths])
    labels = [task.class_names.index(prompts[i % len(prompts)].text) for i in range(len(paths))]
    return Dataset(folder.name, "train", images, np.array(labels, dtype=np.int64), task.class_names)


@torch.no_grad()
def warn_without_effect(model: StableDiffusion, concept: Concept, task: Task, at_most: int = 8) -> None:
    """Tell of forget prompts that the model answers as it answers their anchors: there is nothing to erase."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn((2, *model.sample_shape), generator=generator).to(model.device)
    timesteps = torch.full((2,), model.num_train_timesteps // 2, device=model.device)
    for number in range(min(at_most, len(task.forget))):
        pair = [torch.full((2,), label, device=model.device) for label in (task.forget[number], task.anchors[number])]
        own, other = (model.predict(noisy, timesteps, labels) for labels in pair)
        if float((own - other).norm()) < SAME * float(own.norm()):
            row = concept.forget[number]
            log_warning(
                f"{row.text!r} has no effect on this model, which answers as for {row.anchor!r}: "
                "nothing is there to erase, or the words are not how the model knows it"
            )
