"""What a data set is, and how training reads it: a batch is a pure function of its step, so nothing is saved."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erasure.core.errors import DataError
from erasure.core.rng import derive_seed
from erasure.data.images import to_float


class Batch(NamedTuple):
    """Images (b, c, h, w) in [-1, 1], or what a model encoded them to, and their class labels (b,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Aspect:
    """One property of an image, such as its style: the values it can have, and the value of each class.

    Aspects of one `domain` are of one kind, in order (a first and a second digit); empty means its own name.
    """

    names: tuple[str, ...]
    of_class: tuple[int, ...]
    domain: str = ""


@dataclass(frozen=True)
class Dataset:
    """Labelled images: uint8 (n, h, w, c), labels int64 (n,) that index `class_names`.

    `flips` says that a mirrored image still shows its class; `crop_padding` is how many pixels it may be shifted by.
    `captions` are the words for each class, `aspects` what its images show, where the data says so.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    flips: bool = False
    crop_padding: int = 0
    captions: tuple[tuple[str, ...], ...] = ()
    aspects: Mapping[str, Aspect] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def nothing(cls) -> Dataset:
        """A data set without images, for callers that need none."""
        return cls("none", "train", np.empty((0, 1, 1, 3), np.uint8), np.empty(0, np.int64), ())

    @property
    def hash(self) -> str:
        """SHA-256 of images, labels and class names."""
        digest = hashlib.sha256(f"{self.images.shape} {self.class_names}".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def check(self) -> None:
        """Refuse an empty set, labels that are none or out of range, or a class without images."""
        if not len(self):
            raise DataError(f"{self.name}: the {self.split} split is empty")
        if not np.issubdtype(self.labels.dtype, np.integer) or self.labels.shape != (len(self.images),):
            raise DataError(
                f"{self.name}: expected a whole number as label of each of {len(self.images)} images, "
                f"got {self.labels.dtype} of shape {self.labels.shape}"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise DataError(f"{self.name}: labels must lie in 0 to {len(self.class_names) - 1}")
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        if (counts == 0).any():
            raise DataError(f"{self.name}: class {self.class_names[int(counts.argmin())]!r} has no {self.split} images")

    def samples(self, chosen: np.ndarray) -> Tensor:
        """The samples at positions `chosen` (b,) as a model takes them, (b, c, h, w); here images in [-1, 1]."""
        return to_float(self.images[chosen])

    def of_classes(self, classes: Collection[int]) -> Dataset:
        """The samples whose label is one of `classes`."""
        return self.at(np.isin(self.labels, list(classes)))

    def at(self, chosen: np.ndarray) -> Dataset:
        """The samples at positions `chosen` (m,), or those where it is true (n,)."""
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def first(self, count: int) -> Dataset:
        """At most `count` samples, as even over the classes as the data allows."""
        if count < 1:
            raise DataError(f"--limit {count} must be at least 1")
        rank = np.empty(len(self), dtype=np.int64)
        for label in np.unique(self.labels):
            where = np.flatnonzero(self.labels == label)
            rank[where] = np.arange(len(where))
        return self.at(np.sort(np.argsort(rank, kind="stable")[:count]))


class Batches:
    """Shuffled batches of a data set, epoch after epoch, each a pure function of its step."""

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int, *, augment: bool = True, crop: bool = False
    ) -> None:
        """`augment` mirrors where the data allows it; `crop` also shifts by up to `dataset.crop_padding` pixels."""
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.flip = augment and dataset.flips
        self.padding = dataset.crop_padding if crop else 0
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> Batch:
        """Batch number `step`, always of `batch_size` samples; an epoch ends within a batch where it must."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = np.array([self._index(int(position)) for position in positions])
        images = self.dataset.samples(chosen)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", step))
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
        if self.padding:
            images = _shifted(images, self.padding, generator)
        return Batch(images, torch.from_numpy(self.dataset.labels[chosen]))

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(len(self.dataset))
        return int(self._order[place])


def _shifted(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (padding,) * 4, value=-1.0)
    offsets = torch.randint(0, 2 * padding + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)])


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (h, w, c) uint8 so that its shorter side is `size`, then crop the centre square."""
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    factor = size / min(height, width)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    picture = picture.resize(
        (max(size, round(width * factor)), max(size, round(height * factor))), Image.Resampling.BICUBIC
    )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    cropped = np.asarray(picture.crop((left, top, left + size, top + size)))
    return cropped[..., None] if cropped.ndim == 2 else cropped


def stacked(images: list[np.ndarray], names: list[str], image_size: int | None) -> np.ndarray:
    """One array of all images, fitted to `image_size`; without it, the first that differs is named."""
    if image_size is not None:
        images = [fit(image, image_size) for image in images]
    channels = max(image.shape[-1] for image in images)
    images = [image if image.shape[-1] == channels else image.repeat(channels, axis=-1) for image in images]
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            size, first = f"{image.shape[1]} x {image.shape[0]}", f"{images[0].shape[1]} x {images[0].shape[0]}"
            raise DataError(f"{name} is {size} and {names[0]} is {first}: give --image-size to bring them to one size")
    return np.stack(images)
