"""cifar10: 60,000 photographs in ten classes, 32 x 32 colour (Krizhevsky, 2009).

Read from `--data-dir`, which may be (or hold) any of these forms:
- `cifar10-train.tar.gz` and `cifar10-test.tar.gz` (or .tar, .zip) with members `<split>/<class>/NNNN.<image>`;
- the official *binary* version, `cifar-10-binary.tar.gz`, or its unpacked folder `cifar-10-batches-bin`;
- a folder `<split>/<class>/NNNN.<image>`.
The counts are checked (5,000 and 1,000 a class): a truncated or different archive is refused.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from erasure.data import image_folder
from erasure.data._base import Dataset
from erasure.errors import DataError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 5000, "test": 1000}
BINARY = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
RECORD = 1 + 3 * 32 * 32
EXPECTED = "expected cifar10-train.tar.gz with cifar10-test.tar.gz, cifar-10-binary.tar.gz, or train/<class>/ folders"


class Cifar10:
    """CIFAR-10 from any of its forms on disk."""

    def load(self, split: str, data_dir: Path | None = None) -> Dataset:
        """The split, counts checked; raises DataError for a wrong or damaged archive."""
        if data_dir is None:
            raise DataError(f"--data cifar10 needs --data-dir with the files: {EXPECTED}")
        source = _find(data_dir, split)
        images, labels = _read_binary(source, split) if _is_binary(source) else _read_images(source, split)
        counts = np.bincount(labels, minlength=len(NAMES)).tolist()
        if counts != [PER_CLASS[split]] * len(NAMES):
            raise DataError(
                f"{source} is not CIFAR-10's {split} split: expected {PER_CLASS[split]} images in each of "
                f"{len(NAMES)} classes, found {min(counts)} to {max(counts)}"
            )
        return Dataset("cifar10", split, images, labels, NAMES, flips=True, crop_padding=4)


def _find(root: Path, split: str) -> Path:
    if root.is_file():
        return root
    if (root / split).is_dir() or (root / BINARY[split][0]).is_file():
        return root
    for pattern in (f"*{split}*.tar.gz", f"*{split}*.tar", f"*{split}*.zip", "cifar-10-batches-bin", "*binary*.tar.gz"):
        found = sorted(root.glob(pattern))
        if found:
            return found[0]
    if any(root.glob("*python*")):
        raise DataError(
            f"{root} holds the pickled Python version of CIFAR-10, which can run code: use the binary version"
        )
    raise DataError(f"{root} holds no CIFAR-10 {split} split: {EXPECTED}")


def _is_binary(source: Path) -> bool:
    return "binary" in source.name or any((source / name).is_file() for names in BINARY.values() for name in names)


def _read_images(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    names, pictures, labels = [], [], []
    for name, class_name, picture in image_folder.members(source, split):
        if class_name not in NAMES:
            raise DataError(f"{name}: {class_name!r} is not a class of CIFAR-10 ({', '.join(NAMES)})")
        if picture.shape != (32, 32, 3):
            raise DataError(f"{name} is {picture.shape}, expected a colour image of 32 x 32")
        names.append(name)
        pictures.append(picture)
        labels.append(NAMES.index(class_name))
    if not pictures:
        raise DataError(f"{source} holds no images under {split}/: {EXPECTED}")
    order = np.argsort(np.array(names), kind="stable")
    return np.stack(pictures)[order], np.array(labels, dtype=np.int64)[order]


def _read_binary(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    blocks = dict(_binary_files(source, BINARY[split]))
    missing = [name for name in BINARY[split] if name not in blocks]
    if missing:
        raise DataError(f"{source} lacks {missing[0]}: it is not the binary version of CIFAR-10")
    raw = b"".join(blocks[name] for name in BINARY[split])
    if len(raw) % RECORD:
        raise DataError(f"{source} is damaged: its records are not {RECORD} bytes each")
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int64)
    if len(labels) and labels.max() >= len(NAMES):
        raise DataError(f"{source} is damaged: a label is {labels.max()}, expected 0 to 9")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), labels


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
