"""Where the images of an audit come from: a model that generates them under a protocol, or a folder.

An image depends on its own seed alone, whatever batch or process generates it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from erasure.auditing.protocols import Protocol
from erasure.auditing.records import Key
from erasure.core.errors import DataError
from erasure.core.rng import derive_seed
from erasure.data.images import image_paths, read_image, to_uint8
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.prompt_table import PromptRow
from erasure.sampling.draw import DRAWN_AT_ONCE

READ_AT_ONCE = 16


class PlannedImage(NamedTuple):
    """Image number `image` of prompt `row`; an image of a folder has a row and nothing else."""

    row: str
    image: int
    seed: int | None = None
    prompt: str = ""
    guidance_scale: float | None = None
    size: tuple[int, int] | None = None

    @property
    def key(self) -> Key:
        """What identifies the image in its audit."""
        return self.row, self.image


class ImageSource(ABC):
    """Where images come from: the `planned` ones in the order of the result, and the `batches` they are made in.

    Neither changes when an audit is resumed, so an image that is generated again has the same bits.
    """

    planned: list[PlannedImage]
    batches: list[list[PlannedImage]]

    @abstractmethod
    def images(self, batch: Sequence[PlannedImage]) -> list[np.ndarray | str]:
        """An RGB image uint8 (h, w, 3) for each planned image, or why there is none."""


class GeneratedImages(ImageSource):
    """Images that `model` generates for `rows` under `protocol`; rows of one guidance scale and size share batches."""

    def __init__(
        self,
        model: StableDiffusion,
        rows: Sequence[PromptRow],
        protocol: Protocol,
        seed: int = 0,
        batch_size: int = 0,
        usual: Mapping[str, Any] | None = None,
    ) -> None:
        """Plan the images.

        Args:
            model: What generates.
            rows: One prompt each.
            protocol: The sampling settings.
            seed: From which the seeds of rows without one are derived.
            batch_size: Images at once; 0 for as many as their size allows.
            usual: Sampling settings for what protocol and row leave open, in place of the family's. The checkpoint's
                own are never used: it would choose how it is audited.
        """
        self.model, self.protocol = model, protocol
        self.usual = {**type(model).sampling, **(usual or {})}
        self.batches = []
        self.planned = [planned for row in rows for planned in _planned(row, protocol, seed)]
        alike: dict[tuple[float | None, tuple[int, int] | None], list[PlannedImage]] = {}
        for planned in self.planned:
            alike.setdefault((planned.guidance_scale, planned.size), []).append(planned)
        for (_, size), part in alike.items():
            at_once = batch_size or max(1, min(128, DRAWN_AT_ONCE // math.prod(model.shape_of(size))))
            self.batches += [part[i : i + at_once] for i in range(0, len(part), at_once)]

    def images(self, batch: Sequence[PlannedImage]) -> list[np.ndarray | str]:
        """Generated images; one that is not finite, or of a single colour, shows nothing that could be scored."""
        prompts = [planned.prompt for planned in batch]
        self.model.set_prompts(prompts)
        protocol, first = self.protocol, batch[0]
        settings = {
            "sampler": protocol.sampler,
            "num_inference_steps": protocol.num_inference_steps,
            "guidance_scale": first.guidance_scale,
        }
        chosen = {**self.usual, **{key: value for key, value in settings.items() if value is not None}}
        seeds = [int(planned.seed or 0) for planned in batch]
        generated = self.model.generate(torch.arange(len(batch)), seeds, **chosen, size=first.size)
        return [_scorable(image) for image in generated]


class FolderImages(ImageSource):
    """The images of a folder and its subfolders; an image's row is its path in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = image_paths(folder)
        self.planned = [PlannedImage(path.relative_to(folder).as_posix(), 0) for path in files]
        self.batches = [self.planned[i : i + READ_AT_ONCE] for i in range(0, len(files), READ_AT_ONCE)]

    def images(self, batch: Sequence[PlannedImage]) -> list[np.ndarray | str]:
        """The decoded files."""
        found: list[np.ndarray | str] = []
        for planned in batch:
            try:
                found.append(read_image(self.folder / planned.row, planned.row, channels=3))
            except DataError as error:
                found.append(str(error))
        return found


def _planned(row: PromptRow, protocol: Protocol, seed: int) -> Iterator[PlannedImage]:
    """The planned images of one row."""
    guidance = row.guidance_scale if protocol.guidance_scale == "row" else protocol.guidance_scale
    height = row.height if protocol.height == "row" else protocol.height
    width = row.width if protocol.width == "row" else protocol.width
    size = (int(height), int(width)) if height and width else None
    for i in range(protocol.images_per_prompt):
        if protocol.seed == "row":
            own = derive_seed(seed, "audit", row.id, i) if row.seed is None else row.seed + i
        else:
            own = derive_seed(int(protocol.seed), "audit", row.id, i)
        yield PlannedImage(row.id, i, own, row.prompt, None if guidance is None else float(guidance), size)


def _scorable(image: torch.Tensor) -> np.ndarray | str:
    if not bool(torch.isfinite(image).all()):
        return "the model generated numbers that are not finite"
    pixels = to_uint8(image[None])[0]
    if bool((pixels == pixels[0, 0]).all()):
        return "the model generated a blank image"
    return pixels if pixels.shape[-1] == 3 else pixels.repeat(3, axis=-1)
