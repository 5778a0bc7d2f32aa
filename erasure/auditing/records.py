"""The records of an audit: one for each planned image, as a line of JSON on disk and as arrays in memory.

A line holds the row and number of the image, its seed, SHA-256 of its pixels, and either the raw scores and boxes of
every detector, or why the image `failed`. An image without a finite score of the main detector is unscored: it is never
counted as free of the concept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from erasure.auditing.result import Failure
from erasure.core.errors import DataError
from erasure.core.files import atomic_path, json_lines
from erasure.core.records import Record, stored
from erasure.prompts.prompt_table import PromptRow

Key = tuple[str, int]  # an image of an audit: the id of its row, and its number among the row's images
Found = dict[str, tuple[np.ndarray, np.ndarray | None]]  # scores and boxes (class, score) of each detector


@dataclass(frozen=True)
class ImageRecord(Record):
    """What is on record of one image.

    `scores` holds the score of each class by detector, `boxes` a list [class, score, x, y, w, h] for each box by
    detector that locates.
    """

    row: str
    image: int
    seed: int | None = stored(optional=True)
    sha256: str | None = stored(optional=True)
    failed: str | None = stored(optional=True)
    scores: Mapping[str, list[float]] | None = stored(optional=True)
    boxes: Mapping[str, list[list[float]]] | None = stored(optional=True)

    @property
    def key(self) -> Key:
        """What identifies the image in its audit."""
        return self.row, self.image

    @property
    def is_final(self) -> bool:
        """Whether the image need not be tried again: not where there was an image and a detector failed."""
        return self.failed is None or self.sha256 is None


class AuditRecords:
    """The records of one model's images: a part for each process during a run, `<name>.jsonl` in order afterwards."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path = folder / f"{name}.jsonl"

    @property
    def parts(self) -> list[Path]:
        """The files that processes have written since the last `merge`."""
        return sorted(self.folder.glob(f"{self.name}.part-*.jsonl"))

    def part(self, process: int) -> Path:
        """The file of one process."""
        return self.folder / f"{self.name}.part-{process}.jsonl"

    def keys(self) -> set[Key]:
        """Which images have a record and need not be tried again."""
        return {record.key for path in (*self.parts, self.path) for record in _read(path) if record.is_final}

    def merge(self, order: Iterable[Key]) -> None:
        """Join the parts into one file, in the order of the keys, and remove them."""
        lines = {
            record.key: json.dumps(record.to_dict()) for path in (self.path, *self.parts) for record in _read(path)
        }
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
            handle.writelines(lines[key] + "\n" for key in order)
        for path in self.parts:
            path.unlink()

    def __iter__(self) -> Iterator[ImageRecord]:
        """The records of a finished model, one at a time; raises RunError for a line that is no record."""
        return _read(self.path)


def _read(path: Path) -> Iterator[ImageRecord]:
    """The whole records of a file, none where there is no file; a last line that a kill cut short is left out."""
    if path.exists():
        for number, values in enumerate(json_lines(path), start=1):
            yield ImageRecord.from_dict(
                values, f"{path}, line {number} is damaged, delete it and run the same audit again"
            )


NO_BOX = np.zeros((0, 2))
IMAGES = 1 << 32  # more than a row has images: a row and an image make one integer


@dataclass(frozen=True)
class Images:
    """Scored images, sorted by row and image, and what could not be scored.

    `rows` (n,) are positions in the prompt set, `numbers` (n,) count the images of a row. `groups` (n,) say which
    images are independent: the row, or that of the first image with the very same pixels. `scores[detector]` (n,
    classes) is NaN where an additional detector has none; `boxes[detector]` (m, 3) holds image, class and score of
    every box, and `located[detector]` (n,) says for which images the detector gave a list of boxes. `generated` counts
    the scored images and those with a hash.
    """

    rows: np.ndarray
    numbers: np.ndarray
    groups: np.ndarray
    scores: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]
    located: dict[str, np.ndarray]
    generated: int
    failures: list[Failure]

    def __len__(self) -> int:
        return len(self.rows)

    def flags(self, detector: str, columns: Sequence[int], threshold: float) -> np.ndarray:
        """Which images (n,) have a score of at least `threshold` in any of the `columns`."""
        return np.any(self.scores[detector][:, columns] >= threshold, axis=1)

    def detections(self, detector: str, columns: Sequence[int], threshold: float) -> np.ndarray:
        """Boxes of those classes and scores in each image (n,); without boxes a flagged image is one detection."""
        image, label, score = self.boxes[detector].T
        counted = image[np.isin(label, columns) & (score >= threshold)].astype(np.int64)
        boxes = np.bincount(counted, minlength=len(self))
        return np.where(self.located[detector], boxes, self.flags(detector, columns, threshold))

    def several(self) -> bool:
        """Whether any row has more than one scored image."""
        return len(np.unique(self.rows)) < len(self)

    def shared(self, other: Images) -> tuple[np.ndarray, np.ndarray]:
        """Positions here and in `other` of the images, by row and number, that both have."""
        keys, others = (images.rows * IMAGES + images.numbers for images in (self, other))
        _, ours, theirs = np.intersect1d(keys, others, assume_unique=True, return_indices=True)
        return ours, theirs


class _Position(NamedTuple):
    """The position of an image's row in the prompt set, and its number among the row's images."""

    row: int
    number: int


@dataclass
class _Gathered:
    """Scores, reasons for failure and hashes by position, while records are read."""

    scored: dict[_Position, Found] = field(default_factory=dict)
    failed: dict[_Position, str] = field(default_factory=dict)
    hashes: dict[_Position, str] = field(default_factory=dict)

    def add(self, record: ImageRecord, position: _Position, widths: Mapping[str, int], main: str) -> None:
        """Take in one record; raises DataError when it contradicts an earlier one of the same image."""
        if record.sha256:
            self.hashes[position] = record.sha256
        found, why = _scores(record, widths, main)
        if why is not None:
            self.failed[position] = min(why, self.failed.get(position, why))
        elif not _same(found, self.scored.setdefault(position, found)):
            raise DataError(
                f"row {record.row!r}, image {record.image} has two records with different scores: two runs in one file"
            )


def gather(records: Iterable[ImageRecord], rows: Sequence[PromptRow], widths: Mapping[str, int], main: str) -> Images:
    """The records as arrays, whatever their order; `widths` is the number of classes of each detector.

    Without a finite score of every class of the `main` detector an image is a failure. A failure counts only while no
    other record of that image has scores, so that a resumed run is read as it ended. Raises DataError for a row outside
    `rows`, a wrong number of scores, or two records of one image that disagree.
    """
    position = {row.id: index for index, row in enumerate(rows)}
    gathered = _Gathered()
    for record in records:
        if record.row not in position:
            raise DataError(
                f"there is a record of row {record.row!r}, which the prompt set does not have: is it another set?"
            )
        gathered.add(record, _Position(position[record.row], record.image), widths, main)
    failures = [
        Failure(rows[key.row].id, key.number, gathered.failed[key])
        for key in sorted(set(gathered.failed) - set(gathered.scored))
    ]
    return _stacked(gathered, widths, failures)


def _scores(record: ImageRecord, widths: Mapping[str, int], main: str) -> tuple[Found, str | None]:
    """Scores and boxes (class, score) of each detector, and why the image counts as unscored."""
    if record.failed:
        return {}, record.failed
    found: Found = {}
    scores, boxes = record.scores or {}, record.boxes or {}
    for name, width in widths.items():
        values = np.array(scores.get(name, [math.nan] * width), dtype=np.float64)
        if values.shape != (width,):
            raise DataError(
                f"row {record.row!r}, image {record.image} has {values.size} scores of {name}, "
                f"which has {width} classes: is it a record of another detector?"
            )
        if not np.isfinite(values).all():
            if name == main:
                return {}, f"no finite score of {name}"
            values = np.full(width, math.nan)
        located = boxes.get(name)
        found[name] = values, None if located is None else np.array([box[:2] for box in located]).reshape(-1, 2)
    return found, None


def _same(one: Found, other: Found) -> bool:
    return all(np.array_equal(one[name][0], other[name][0], equal_nan=True) for name in one)


def _stacked(gathered: _Gathered, widths: Mapping[str, int], failures: list[Failure]) -> Images:
    order = sorted(gathered.scored)
    keys = np.array(order, dtype=np.int64).reshape(-1, 2)
    scores, boxes, located = {}, {}, {}
    for name, width in widths.items():
        pairs = [gathered.scored[key][name] for key in order]
        scores[name] = np.array([values for values, _ in pairs]).reshape(-1, width)
        located[name] = np.array([found is not None for _, found in pairs], dtype=bool)
        lists = [NO_BOX if found is None else found for _, found in pairs]
        image = np.repeat(np.arange(len(order)), [len(found) for found in lists])
        boxes[name] = np.column_stack([image, np.concatenate([NO_BOX, *lists])])
    first: dict[str, int] = {}
    hashes = gathered.hashes
    groups = np.array([first.setdefault(hashes.get(key, str(key)), key.row) for key in order], dtype=np.int64)
    generated = len(set(hashes) | set(gathered.scored))
    return Images(keys[:, 0], keys[:, 1], groups, scores, boxes, located, generated, failures)
