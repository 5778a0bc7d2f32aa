"""CIFAR's forms on disk, which cifar10 and cifar100 share: archives of images, binary files, folders.

An archive of images takes longer to decode than a small network takes to train: what was decoded is kept in the user's
cache, under the archive's own hash, and read from there when the same archive comes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from erasure.core.errors import DataError, ErasureError
from erasure.core.run_dir import cache_folder
from erasure.data.containers import members
from erasure.data.dataset import Dataset
from erasure.formats.safetensors_io import read_tensors, write_tensors

SIDE = 32
PIXELS = 3 * SIDE * SIDE


class Cifar:
    """60,000 photographs of 32 x 32 pixels; a data set says its names, and how its binary files are laid out."""

    name: ClassVar[str]
    title: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    binary: ClassVar[Mapping[str, tuple[str, ...]]]
    binary_folder: ClassVar[str]
    pickled: ClassVar[tuple[str, ...]]  # what the pickled version is called on disk
    label_bytes: ClassVar[int] = 1  # before each image; the last of them is the label

    @property
    def expected(self) -> str:
        """The forms that are read, for errors."""
        archives = f"{self.name}-train.tar.gz with {self.name}-test.tar.gz"
        return f"expected {archives}, {self.binary_folder} or its archive, or train/<class>/ folders"

    def load(self, split: str, data_dir: Path | None = None) -> Dataset:
        """The split, counts checked; raises DataError for a wrong or damaged archive."""
        if data_dir is None:
            raise DataError(f"--data {self.name} needs --data-dir with the files: {self.expected}")
        source = self._find(data_dir, split)
        images, labels = (
            self._read_binary(source, split) if self._is_binary(source) else self._read_images(source, split)
        )
        counts = np.bincount(labels, minlength=len(self.names)).tolist()
        per_class = {"train": 50_000, "test": 10_000}[split] // len(self.names)
        if counts != [per_class] * len(self.names):
            raise DataError(
                f"{source} is not {self.title}'s {split} split: expected {per_class} images in each of "
                f"{len(self.names)} classes, found {min(counts)} to {max(counts)}"
            )
        return Dataset(self.name, split, images, labels, self.names, flips=True, crop_padding=4)

    def _find(self, root: Path, split: str) -> Path:
        if root.is_file():
            return self._no_pickle(root)
        if (root / split).is_dir() or (root / self.binary[split][0]).is_file():
            return root
        binary = (self.binary_folder, "*binary*.tar.gz")
        for pattern in (f"*{split}*.tar.gz", f"*{split}*.tar", f"*{split}*.zip", *binary):
            found = sorted(root.glob(pattern), key=lambda path: (self._is_other(path), path.name))
            if found:
                return found[0]
        for path in (root, *sorted(root.iterdir())):
            self._no_pickle(path)
        raise DataError(f"{root} holds no {self.title} {split} split: {self.expected}")

    def _no_pickle(self, path: Path) -> Path:
        if path.name.startswith(self.pickled):
            raise DataError(
                f"{path} is the pickled Python version of {self.title}, which can run code: use the binary version"
            )
        return path

    def _is_other(self, path: Path) -> bool:
        """Whether a file does not say that it is of this CIFAR, where both may lie in one folder."""
        return self.title.partition("-")[2] not in re.findall(r"\d+", path.name)

    def _is_binary(self, source: Path) -> bool:
        files = [name for names in self.binary.values() for name in names]
        return "binary" in source.name or any((source / name).is_file() for name in files)

    def _read_images(self, source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        if source.is_dir():
            return self._decoded(source, split)
        with source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        kept = cache_folder() / "decoded" / f"{self.name}-{split}-{digest[:32]}.safetensors"
        if kept.is_file():
            with contextlib.suppress(ErasureError):  # a damaged file is made again
                tensors = read_tensors(kept)[0]
                return tensors["images"].numpy(), tensors["labels"].numpy()
        images, labels = self._decoded(source, split)
        with contextlib.suppress(ErasureError):  # a full disk costs the time, not the data
            write_tensors(kept, {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)})
        return images, labels

    def _decoded(self, source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        found = sorted(members(source, split, channels=3), key=lambda item: item[0])
        for name, class_name, picture in found:
            if class_name not in self.names:
                raise DataError(
                    f"{name}: {class_name!r} is not a class of {self.title} ({', '.join(self.names[:10])} ...)"
                )
            if picture.shape != (SIDE, SIDE, 3):
                raise DataError(f"{name} is {picture.shape}, expected a colour image of {SIDE} x {SIDE}")
        if not found:
            raise DataError(f"{source} holds no images under {split}/: {self.expected}")
        labels = [self.names.index(class_name) for _, class_name, _ in found]
        return np.stack([picture for *_, picture in found]), np.array(labels, dtype=np.int64)

    def _read_binary(self, source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        blocks = dict(_binary_files(source, self.binary[split]))
        missing = [name for name in self.binary[split] if name not in blocks]
        if missing:
            raise DataError(f"{source} lacks {missing[0]}: it is not the binary version of {self.title}")
        raw = b"".join(blocks[name] for name in self.binary[split])
        record = self.label_bytes + PIXELS
        if len(raw) % record:
            raise DataError(f"{source} is damaged: its records are not {record} bytes each")
        records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, record)
        labels = records[:, self.label_bytes - 1].astype(np.int64)
        if len(labels) and labels.max() >= len(self.names):
            raise DataError(f"{source} is damaged: a label is {labels.max()}, expected 0 to {len(self.names) - 1}")
        return records[:, self.label_bytes :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1).copy(), labels


def _binary_files(source: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for name in wanted:
            if (source / name).is_file():
                yield name, (source / name).read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                stream = archive.extractfile(member) if Path(member.name).name in wanted else None
                if stream is not None:
                    yield Path(member.name).name, stream.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{source} is damaged: {error}") from error
