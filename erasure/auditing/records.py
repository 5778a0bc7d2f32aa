"""The records of an audit as arrays: one line for each scored image, in the order of the prompt rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erasure.core.errors import DataError
from erasure.prompts.prompt_table import PromptRow

NO_BOX = np.zeros((0, 2))
IMAGES = 1 << 32  # more than a row has images: a row and an image make one integer


@dataclass(frozen=True)
class Images:
    """Scored images, sorted by row and image, and what could not be scored.

    `rows` (n,) are positions in the prompt set, `numbers` (n,) count the images of a row. `groups` (n,) say what is
    independent: the row, or that of the first image with the very same pixels. `scores[detector]` (n,
    classes) is NaN where an additional detector has none; `boxes[detector]` (m, 3) holds image, class and score of
    every box, and `located[detector]` (n,) says for which images the detector gave any list of boxes. `generated`
    counts the scored images and those with a hash.
    """

    rows: np.ndarray
    numbers: np.ndarray
    groups: np.ndarray
    scores: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]
    located: dict[str, np.ndarray]
    generated: int
    failures: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def flags(self, detector: str, columns: Sequence[int], threshold: float) -> np.ndarray:
        """Which images (n,) have a score of at least `threshold` in any of the `columns`."""
        return np.any(self.scores[detector][:, columns] >= threshold, axis=1)

    def detections(self, detector: str, columns: Sequence[int], threshold: float) -> np.ndarray:
        """Boxes of those classes and scores in each image (n,); where nothing is located a flagged image is one."""
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


def gather(
    records: Iterable[Mapping[str, Any]], rows: Sequence[PromptRow], widths: Mapping[str, int], main: str
) -> Images:
    """The records as arrays, whatever their order; `widths` is the number of classes of each detector.

    Without a finite score of every class of the `main` detector an image is a failure. A failure counts only while no
    other record of that image has scores, so a run that was taken up again is read as it ended. Raises DataError for a
    row outside `rows`, a wrong number of scores, or two records of one image that disagree.
    """
    position = {row.id: index for index, row in enumerate(rows)}
    kept: dict[tuple[int, int], dict[str, tuple[np.ndarray, np.ndarray | None]]] = {}
    failed: dict[tuple[int, int], str] = {}
    hashes: dict[tuple[int, int], str] = {}
    for record in records:
        name, number = str(record["row"]), int(record["image"])
        if name not in position:
            raise DataError(
                f"there is a record of row {name!r}, which the prompt set does not have: is it another set?"
            )
        key = position[name], number
        if record.get("sha256"):
            hashes[key] = record["sha256"]
        found, why = _scores(record, widths, main)
        if why is not None:
            failed[key] = min(why, failed.get(key, why))
        elif not _same(found, kept.setdefault(key, found)):
            raise DataError(f"row {name!r}, image {number} has two records with different scores: two runs in one file")
    failures = [
        {"row": rows[key[0]].id, "image": key[1], "why": failed[key]} for key in sorted(set(failed) - set(kept))
    ]
    return _stacked(kept, widths, hashes, failures)


def _scores(
    record: Mapping[str, Any], widths: Mapping[str, int], main: str
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray | None]], str | None]:
    """Scores and boxes (class, score) of each detector, and why the image counts as unscored."""
    if record.get("failed"):
        return {}, str(record["failed"])
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    scores, boxes = record.get("scores") or {}, record.get("boxes") or {}
    for name, width in widths.items():
        values = np.array(scores.get(name, [math.nan] * width), dtype=np.float64)
        if values.shape != (width,):
            raise DataError(
                f"row {record['row']!r}, image {record['image']} has {values.size} scores of {name}, "
                f"which has {width} classes: is it a record of another detector?"
            )
        if not np.isfinite(values).all():
            if name == main:
                return {}, f"no finite score of {name}"
            values = np.full(width, math.nan)
        located = boxes.get(name)
        found[name] = values, None if located is None else np.array([box[:2] for box in located]).reshape(-1, 2)
    return found, None


def _same(one: Mapping[str, tuple[np.ndarray, Any]], other: Mapping[str, tuple[np.ndarray, Any]]) -> bool:
    return all(np.array_equal(one[name][0], other[name][0], equal_nan=True) for name in one)


def _stacked(
    kept: Mapping[tuple[int, int], Mapping[str, tuple[np.ndarray, np.ndarray | None]]],
    widths: Mapping[str, int],
    hashes: Mapping[tuple[int, int], str],
    failures: list[dict[str, Any]],
) -> Images:
    order = sorted(kept)
    keys = np.array(order, dtype=np.int64).reshape(-1, 2)
    scores, boxes, located = {}, {}, {}
    for name, width in widths.items():
        pairs = [kept[key][name] for key in order]
        scores[name] = np.array([values for values, _ in pairs]).reshape(-1, width)
        located[name] = np.array([found is not None for _, found in pairs], dtype=bool)
        lists = [NO_BOX if found is None else found for _, found in pairs]
        image = np.repeat(np.arange(len(order)), [len(found) for found in lists])
        boxes[name] = np.column_stack([image, np.concatenate([NO_BOX, *lists])])
    first: dict[str, int] = {}
    groups = np.array([first.setdefault(hashes.get(key, str(key)), key[0]) for key in order], dtype=np.int64)
    generated = len(set(hashes) | set(kept))
    return Images(keys[:, 0], keys[:, 1], groups, scores, boxes, located, generated, failures)
