"""hub: an image classification data set by its hub id ("owner/name"), through the `datasets` package (an extra)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erasure.core.errors import DataError
from erasure.data.dataset import Dataset, stacked


class _Known(NamedTuple):
    """What the hub does not say of a data set: its configuration, and how its images may be changed in training."""

    configuration: str | None
    flips: bool
    crop_padding: int


KNOWN = {
    "uoft-cs/cifar10": _Known(None, True, 4),
    "uoft-cs/cifar100": _Known(None, True, 4),
    "ufldl-stanford/svhn": _Known("cropped_digits", False, 4),
    "zh-plus/tiny-imagenet": _Known(None, True, 8),
}
SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}  # as they are called, the first there is


class Hub:
    """A data set of the Hugging Face hub with one image column and one class-label column."""

    def load(self, split: str, spec: str | Path | None = None, image_size: int | None = None) -> Dataset:
        """The split of the data set `spec`; where there is no test split, the validation split is it."""
        if spec is None:
            raise DataError("--data hub needs the id itself: give owner/name as --data")
        try:
            import datasets
        except ImportError:
            raise DataError(f"--data {spec} reads a hub id: install it with `pip install erasure[hub]`") from None
        try:
            known = KNOWN.get(str(spec), _Known(None, False, 0))
            every = datasets.load_dataset(str(spec), known.configuration)
        except Exception as error:  # the library raises a dozen kinds for one meaning
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"data set {spec} cannot be loaded ({reason}): check the id and the network") from error
        chosen = next((name for name in SPLITS[split] if name in every), None)
        if chosen is None:
            raise DataError(f"data set {spec} has no {split} split (it has {', '.join(every)})")
        dataset = from_table(every[chosen], str(spec), split, image_size)
        return replace(dataset, flips=known.flips, crop_padding=known.crop_padding)


def from_table(table: Any, name: str, split: str, image_size: int | None) -> Dataset:
    """A Dataset from a `datasets.Dataset` table, its columns found by their types; of several labels, the finest."""
    images = [key for key, feature in table.features.items() if type(feature).__name__ == "Image"]
    labels = [key for key, feature in table.features.items() if type(feature).__name__ == "ClassLabel"]
    if not images or not labels:
        raise DataError(f"data set {name} needs an image and a class-label column, it has {', '.join(table.features)}")
    pictures = [_as_array(picture) for picture in table[images[0]]]
    array = stacked(pictures, [f"{name}[{i}]" for i in range(len(pictures))], image_size)
    finest = max(labels, key=lambda key: len(table.features[key].names))
    return Dataset(name, split, array, np.array(table[finest], dtype=np.int64), tuple(table.features[finest].names))


def _as_array(picture: Any) -> np.ndarray:
    array = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    return array[..., None] if array.ndim == 2 else array
