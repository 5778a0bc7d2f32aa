"""image_folder: any folder, tar or zip of class folders, `<class>/<image>` or `<split>/<class>/<image>`.

Without split folders, in each class every fifth image (by name) is for testing.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from erasure.core.errors import DataError
from erasure.data.dataset import Dataset, stacked
from erasure.data.images import SUFFIXES, read_image


class ImageFolder:
    """The user's own images, one folder a class."""

    def load(self, split: str, source: Path | None = None, image_size: int | None = None) -> Dataset:
        """The split of `source`; classes are the folder names in order. A broken image is named and refused."""
        if source is None:
            raise DataError("--data image_folder needs the folder itself: give its path as --data")
        splits = has_splits(source)
        found = sorted(members(source, split if splits else None), key=lambda item: (item[1], item[0]))
        if not found:
            raise DataError(
                f"{source} holds no images: expected {'train/' if splits else ''}<class>/<image>.png and so on"
            )
        class_names = tuple(
            sorted({PurePosixPath(name).parts[-2] for name, _ in files(source, is_image, read=False) if "/" in name})
        )
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


def has_splits(source: Path) -> bool:
    """Whether the tree has a `train` level above its classes."""
    if source.is_dir():
        return (source / "train").is_dir()
    return any(PurePosixPath(name).parts[-3:-2] == ("train",) for name, _ in files(source, is_image, read=False))


def members(source: Path, split: str | None, channels: int | None = None) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, class, image) for every image below `split` (None: any), of so many `channels` (None: its own).

    Raises DataError for the first broken one.
    """
    for name, raw in files(source, is_image):
        parts = PurePosixPath(name).parts
        if len(parts) < 2 or (split is not None and parts[-3:-2] != (split,)):
            continue
        yield name, parts[-2], read_image(io.BytesIO(raw), f"{source}: {name}", channels)


def files(source: Path, wanted: Callable[[str], bool], read: bool = True) -> Iterator[tuple[str, bytes]]:
    """Name and content (empty with `read` off) of every file in a folder, tar or zip whose name is `wanted`."""
    try:
        if source.is_dir():
            for path in sorted(source.rglob("*")):
                name = path.relative_to(source).as_posix()
                if wanted(name) and not path.is_dir():
                    yield name, path.read_bytes() if read else b""
            return
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as zipped:
                for name in zipped.namelist():
                    if wanted(name):
                        yield name, zipped.read(name) if read else b""
            return
        with tarfile.open(source) as tarred:
            for member in tarred:
                stream = tarred.extractfile(member) if member.isfile() and wanted(member.name) else None
                if stream is not None:
                    yield member.name, stream.read() if read else b""
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as error:
        raise DataError(f"{source} is not a readable folder, tar or zip of images: {error}") from error


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    base = PurePosixPath(name).name.lower()
    return base.endswith(SUFFIXES) and not base.startswith(".")
