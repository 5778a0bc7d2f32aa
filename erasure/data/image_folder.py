"""image_folder: any folder, tar or zip of class folders, `<class>/<image>` or `<split>/<class>/<image>`.

Without split folders, in each class every fifth image (by name) is for testing.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from erasure.core.errors import DataError
from erasure.data.containers import images_in, members
from erasure.data.dataset import Dataset, stacked


class ImageFolder:
    """The user's own images, one folder a class."""

    def load(self, split: str, source: Path | None = None, image_size: int | None = None) -> Dataset:
        """Load the split of `source`; classes are the folder names in order. A broken image is named and refused."""
        if source is None:
            raise DataError("--data image_folder needs the folder itself: give its path as --data")
        names = [PurePosixPath(file.name) for file in images_in(source)]
        splits = _has_splits(source, names)
        found = sorted(members(source, split if splits else None), key=lambda item: (item[1], item[0]))
        if not found:
            raise DataError(
                f"{source} holds no images: expected {'train/' if splits else ''}<class>/<image>.png and so on"
            )
        class_names = tuple(sorted({name.parts[-2] for name in names if len(name.parts) > 1}))
        if len(class_names) < 2:
            raise DataError(f"{source} has one class folder ({class_names[0]}): at least two are needed, one to keep")
        labels = np.array([class_names.index(class_name) for _, class_name, _ in found], dtype=np.int64)
        images = stacked([image for *_, image in found], [name for name, *_ in found], image_size)
        dataset = Dataset(source.name, split, images, labels, class_names)
        return dataset if splits else _every_fifth(dataset)


def _every_fifth(dataset: Dataset) -> Dataset:
    kept = np.zeros(len(dataset), dtype=bool)
    for label in range(len(dataset.class_names)):
        of_class = np.flatnonzero(dataset.labels == label)
        kept[of_class[4::5]] = True
    if dataset.split == "train":
        kept = ~kept
    return Dataset(dataset.name, dataset.split, dataset.images[kept], dataset.labels[kept], dataset.class_names)


def _has_splits(source: Path, names: list[PurePosixPath]) -> bool:
    """Whether the tree has a `train` level above its classes."""
    return (source / "train").is_dir() if source.is_dir() else any(name.parts[-3:-2] == ("train",) for name in names)
