"""tiny_imagenet: 110,000 photographs in 200 classes of ImageNet, 64 x 64 colour (Le and Yang, 2015).

Read from `--data-dir`, which is (or holds) `tiny-imagenet-200`, as a folder or `tiny-imagenet-200.zip`, laid out as
published: `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` with `val/val_annotations.txt`, `wnids.txt`, `words.txt`.
The published test split has no labels, so `test` is its validation split. Classes are in the order of their wnids, and
are called by the first of their words ("goldfish"), or by the wnid where two share it. Counts are checked. On the hub
it is `zh-plus/tiny-imagenet`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from erasure.core.errors import DataError
from erasure.data.containers import files
from erasure.data.dataset import Dataset
from erasure.data.images import is_hidden, named_as_image, read_image

CLASSES = 200
PER_CLASS = {"train": 500, "test": 50}
SHAPE = (64, 64, 3)
ANNOTATIONS = "val/val_annotations.txt"
EXPECTED = "expected tiny-imagenet-200 (or its .zip) with wnids.txt, train/<wnid>/images/ and val/val_annotations.txt"


class TinyImageNet:
    """Tiny ImageNet as it was published."""

    def load(self, split: str, data_dir: Path | None = None) -> Dataset:
        """The split (test: validation), counts checked; raises DataError for a wrong or damaged copy."""
        if data_dir is None:
            raise DataError(f"--data tiny_imagenet needs --data-dir with the files: {EXPECTED}")
        source = _find(data_dir)
        texts = _texts(source)
        wnids = sorted(texts["wnids.txt"].split())
        if len(set(wnids)) != CLASSES:
            raise DataError(f"{source} is not Tiny ImageNet: wnids.txt names {len(set(wnids))} classes, not {CLASSES}")
        images, labels = _pictures(source, split, {wnid: i for i, wnid in enumerate(wnids)}, texts)
        counts = np.bincount(labels, minlength=len(wnids))
        if (counts != PER_CLASS[split]).any():
            raise DataError(
                f"{source} is not Tiny ImageNet's {split} split: expected {PER_CLASS[split]} images in each of "
                f"{CLASSES} classes, found {counts.min()} to {counts.max()}"
            )
        names = _named(wnids, texts.get("words.txt", ""))
        return Dataset("tiny_imagenet", split, images, labels, names, flips=True, crop_padding=8)


def _find(root: Path) -> Path:
    for path in (root, root / "tiny-imagenet-200", root / "tiny-imagenet-200.zip"):
        if path.is_file() or (path / "wnids.txt").is_file():
            return path
    raise DataError(f"{root} holds no Tiny ImageNet: {EXPECTED}")


def _texts(source: Path) -> dict[str, str]:
    """The text files beside the images, by where they are in `tiny-imagenet-200`."""
    wanted = ("wnids.txt", "words.txt", ANNOTATIONS)
    found = {}
    for file in files(source):
        key = None if is_hidden(file.name) else next((key for key in wanted if file.name.endswith(key)), None)
        if key is not None:
            found[key] = file.read().decode("utf-8", errors="replace")
    missing = [name for name in wanted if name not in found and name != "words.txt"]
    if missing:
        raise DataError(f"{source} lacks {missing[0]}: {EXPECTED}")
    return found


def _pictures(
    source: Path, split: str, index: Mapping[str, int], texts: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 64, 64, 3) and labels (n,) of a split, in the order of their names."""
    rows = [line.split("\t") for line in texts[ANNOTATIONS].splitlines() if line.strip()]
    of_file = {row[0]: row[1].strip() for row in rows if len(row) > 1}
    found = []
    for file in files(source):
        name = file.name
        if _split_of(name) != split:
            continue
        parts = PurePosixPath(name).parts
        wnid = parts[-3] if split == "train" else of_file.get(parts[-1], "")
        if wnid not in index:
            known = "wnids.txt" if split == "train" else ANNOTATIONS
            raise DataError(f"{source}: {name} has no class: {wnid or parts[-1]!r} is not in {known}")
        picture = read_image(io.BytesIO(file.read()), f"{source}: {name}", channels=3)
        if picture.shape != SHAPE:
            raise DataError(f"{source}: {name} is {picture.shape}, expected a colour image of 64 x 64")
        found.append((name, index[wnid], picture))
    if not found:
        raise DataError(f"{source} holds no images of the {split} split: {EXPECTED}")
    found.sort(key=lambda item: item[0])
    return np.stack([picture for *_, picture in found]), np.array([label for _, label, _ in found], dtype=np.int64)


def _split_of(name: str) -> str | None:
    """Whether an image belongs to train or to test (published as val); None for the one without labels and others."""
    parts = PurePosixPath(name).parts
    if not named_as_image(name) or len(parts) < 3 or parts[-2] != "images":
        return None
    if parts[-3] == "val":
        return "test"
    return "train" if parts[-4:-3] == ("train",) else None


def _named(wnids: list[str], words: str) -> tuple[str, ...]:
    """The first word of each class, or its wnid where there is none or another class has it too."""
    told = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    first = [told.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    times = Counter(name.lower() for name in first)
    return tuple(name if name and times[name.lower()] == 1 else wnid for name, wnid in zip(first, wnids, strict=True))
