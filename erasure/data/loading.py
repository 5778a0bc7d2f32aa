"""Load a data set by its name, its path or its hub id."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from erasure.core import registry
from erasure.core.errors import DataError, suggestion
from erasure.data.dataset import Dataset

SPLITS = ("train", "test")


def placed(spec: str | None) -> str | None:
    """`spec` in words that hold from any folder: a path becomes absolute."""
    if spec is None or spec in registry.names("data") or not Path(spec).exists():
        return spec
    return str(Path(spec).resolve())


def load_dataset(
    spec: str, split: str = "train", data_dir: str | Path | None = None, image_size: int | None = None
) -> Dataset:
    """The `split` ("train" or "test") of a data set.

    `spec` is a plug-in's name ("digits", "cifar100"), a folder of class folders, an archive of the same, or a hub id
    ("owner/name", through the `datasets` package). `data_dir` is where a named data set lies on disk. Images of
    another size than `image_size` are resized and cropped to it.
    Raises DataError when it is missing, broken or not what it claims to be.
    """
    directory = Path(data_dir) if data_dir is not None else None
    _check(spec, split, directory, image_size)
    dataset = _loaded(spec, split, directory, image_size)
    dataset.check()
    return dataset


def _check(spec: str, split: str, directory: Path | None, image_size: int | None) -> None:
    """Raise DataError for a choice that cannot be."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: expected train or test")
    if directory is not None and not directory.exists():
        raise DataError(f"--data-dir {directory} does not exist")
    if image_size is not None and image_size < 1:
        raise DataError(f"--image-size {image_size} must be at least 1")
    if image_size is not None and spec in set(registry.names("data")) - {"image_folder", "hub"}:
        raise DataError(f"--data {spec} has one size and takes no --image-size")


def _loaded(spec: str, split: str, directory: Path | None, image_size: int | None) -> Dataset:
    if spec in registry.names("data"):
        found = registry.load("data", spec)().load(split, directory)
    elif Path(spec).exists():
        found = registry.load("data", "image_folder")().load(split, Path(spec), image_size)
    elif spec.count("/") == 1 and not spec.startswith((".", "/")):
        found = registry.load("data", "hub")().load(split, spec, image_size)
    else:
        raise DataError(f"--data {spec} is neither a path nor a data set{suggestion(spec, registry.names('data'))}")
    return cast(Dataset, found)
