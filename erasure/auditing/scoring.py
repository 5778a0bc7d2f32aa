"""Scoring: images are generated or read, every detector scores them, and each record is appended to a file.

Detectors work in a second thread while the next batch is generated. The records of a batch are on disk before those of
the next, so a killed audit loses the batches in progress and no more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erasure.auditing.detectors.base import Box, Detection, Detector
from erasure.auditing.image_sources import ImageSource, PlannedImage
from erasure.auditing.records import AuditRecords, ImageRecord, Key
from erasure.core.distributed import world
from erasure.core.logging import progress
from erasure.core.run_dir import Log, read_log
from erasure.data.images import write_png

DIGITS = 6  # of a raw score that are kept; the networks are float32


def score_images(
    source: ImageSource, detectors: Mapping[str, Detector], folder: Path, name: str, keep: Path | None = None
) -> int:
    """Make and score every planned image of `source` that has no record yet; several processes share the batches.

    Returns how many images were made, by all processes. Records go to `folder` under `name`, in the order of the
    planned images; images to `keep` if it is given.
    """
    state = world()
    records = AuditRecords(folder, name)
    known = records.keys()
    own = read_log(records.part(state.process_index))
    state.wait_for_everyone()  # nobody writes before all have read
    missing = [batch for batch in source.batches if any(planned.key not in known for planned in batch)]
    mine = missing[state.process_index :: state.num_processes]
    if mine:
        log = Log(records.part(state.process_index), own)
        try:
            _Scorer(detectors, known, log, keep).run(source, mine, name)
        finally:
            log.close()
    state.wait_for_everyone()
    if state.is_main_process and (missing or records.parts):
        records.merge(planned.key for planned in source.planned)
    state.wait_for_everyone()
    return sum(map(len, missing))


@dataclass(frozen=True)
class _Scorer:
    """Writes a record for each image whose key is not `known`."""

    detectors: Mapping[str, Detector]
    known: set[Key]
    log: Log
    keep: Path | None

    def run(self, source: ImageSource, batches: Sequence[Sequence[PlannedImage]], name: str) -> None:
        """Score a batch in a second thread while the next one is made."""
        bar = progress(total=sum(map(len, batches)), desc=f"audit {name}", unit="image")
        pending: Future[None] | None = None
        with bar, ThreadPoolExecutor(max_workers=1) as second:
            for batch in batches:
                images = source.images(batch)
                if pending is not None:
                    pending.result()
                pending = second.submit(self.score, batch, images)
                bar.update(len(batch))
            if pending is not None:
                pending.result()

    def score(self, batch: Sequence[PlannedImage], images: Sequence[np.ndarray | str]) -> None:
        """Score the new images of a batch and write their records."""
        pairs = zip(batch, images, strict=True)
        new = [(planned, image) for planned, image in pairs if planned.key not in self.known]
        scored = detected(self.detectors, [image for _, image in new])
        for (planned, image), found in zip(new, scored, strict=True):
            if self.keep is not None and not isinstance(image, str):
                write_png(kept_path(self.keep, planned), image)
            self.log.write(_record(planned, image, found).to_dict())


@dataclass(frozen=True)
class Scores:
    """What all detectors found in an image: scores and boxes by detector, or why it could not be scored."""

    scores: Mapping[str, list[float]]
    boxes: Mapping[str, list[list[float]]]
    failed: str | None = None


def detected(detectors: Mapping[str, Detector], images: Sequence[np.ndarray | str]) -> list[Scores]:
    """What every detector finds in each image; a text in place of an image says why there is none."""
    arrays = [image for image in images if not isinstance(image, str)]
    found = {name: _detect(detector, arrays) for name, detector in detectors.items()}
    by_image: Iterator[tuple[Detection | str, ...]] = zip(*found.values(), strict=True)
    return [
        Scores({}, {}, image) if isinstance(image, str) else _scores(dict(zip(found, next(by_image), strict=True)))
        for image in images
    ]


def _scores(found: Mapping[str, Detection | str]) -> Scores:
    """The detections of one image; where any detector failed it is unscored, whatever the others found."""
    failures = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
    if failures:
        return Scores({}, {}, failures[-1])
    detections = {name: one for name, one in found.items() if not isinstance(one, str)}
    scores = {name: list(map(_short, one.scores)) for name, one in detections.items()}
    boxes = {name: _plain(one.boxes) for name, one in detections.items() if one.boxes is not None}
    return Scores(scores, boxes)


def _plain(boxes: Sequence[Box]) -> list[list[float]]:
    return [[box.label, *map(_short, box[1:])] for box in boxes]


def _record(planned: PlannedImage, image: np.ndarray | str, found: Scores) -> ImageRecord:
    digest = None if isinstance(image, str) else hashlib.sha256(image.tobytes()).hexdigest()
    scores, boxes = found.scores or None, found.boxes or None
    return ImageRecord(planned.row, planned.image, planned.seed, digest, found.failed, scores, boxes)


def _detect(detector: Detector, images: Sequence[np.ndarray]) -> list[Detection | str]:
    """What is found in each image, or why nothing could be; where a batch fails, its images are tried one by one."""
    if not images:
        return []
    try:
        return list(detector.detect(images))
    except Exception as error:  # whatever a foreign network raises, the image is unscored and the audit goes on
        if len(images) == 1:
            return [(str(error).strip() or type(error).__name__).splitlines()[0]]
        return [found for image in images for found in _detect(detector, [image])]


def _short(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def kept_path(folder: Path, planned: PlannedImage) -> Path:
    """The file of a kept image; a hash keeps row ids apart that cannot be file names."""
    plain = re.sub(r"[^\w-]", "_", planned.row)[:60]
    apart = "" if plain == planned.row else "-" + hashlib.sha256(planned.row.encode()).hexdigest()[:8]
    return folder / f"{plain}{apart}-{planned.image:03d}.png"
