"""Trials: the planned images of an audit, drawn or read, looked at by detectors, and written down one by one.

An image depends on its own seed alone, whatever batch or process it is made in. Detectors work in a second thread
while the next batch is drawn. Each image's record is on disk before the next batch is looked at, so a killed audit
loses the batches in flight and no more; batches are fixed, so what is drawn again has the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from erasure.auditing.detectors.base import Detection, Detector
from erasure.auditing.protocols import Protocol
from erasure.core.distributed import world
from erasure.core.errors import DataError
from erasure.core.files import atomic_path, json_lines
from erasure.core.rng import derive_seed
from erasure.core.run_dir import Log, read_log
from erasure.data.images import image_paths, read_image, to_uint8, write_png
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.prompt_table import PromptRow
from erasure.sampling.draw import DRAWN_AT_ONCE


class AuditRecords:
    """The records of one side: a part for each process while it runs, `<name>.jsonl` in order when it is done."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path = folder / f"{name}.jsonl"

    @property
    def parts(self) -> list[Path]:
        """What processes have written since it was last joined."""
        return sorted(self.folder.glob(f"{self.name}.part-*.jsonl"))

    def part(self, process: int) -> Path:
        """The file of one process."""
        return self.folder / f"{self.name}.part-{process}.jsonl"

    def keys(self) -> set[tuple[str, int]]:
        """Which trials have a record; where an image was there and a detector failed, it is tried anew."""
        found: set[tuple[str, int]] = set()
        for path in (*self.parts, self.path):
            found |= {(one["row"], one["image"]) for one in read_log(path) if not {"failed", "sha256"} <= set(one)}
        return found

    def merge(self, order: Iterable[tuple[str, int]]) -> None:
        """Join the parts into one file, in the order of the keys, and drop them."""
        lines: dict[tuple[str, int], str] = {}
        for path in (self.path, *self.parts):
            lines |= {(record["row"], record["image"]): json.dumps(record) for record in read_log(path)}
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
            handle.writelines(lines[key] + "\n" for key in order)
        for path in self.parts:
            path.unlink()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The records of a finished side, one at a time."""
        return json_lines(self.path)


READ_AT_ONCE = 16
DIGITS = 6  # of a raw score that are kept; the networks are float32


class PlannedImage(NamedTuple):
    """One planned image: image `image` of prompt `row`."""

    row: str
    image: int
    seed: int | None = None
    prompt: str = ""
    guidance_scale: float | None = None
    size: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from any other trial of its audit."""
        return self.row, self.image


class ImageSource(ABC):
    """Where the images of an audit come from: `trials` in the order of the result, and the batches they are made in.

    Neither changes while an audit is resumed.
    """

    trials: list[PlannedImage]
    batches: list[list[PlannedImage]]

    @abstractmethod
    def images(self, batch: Sequence[PlannedImage]) -> list[np.ndarray | str]:
        """An RGB image uint8 (h, w, 3) for each trial, or why there is none."""


class Drawn(ImageSource):
    """Images that `model` draws for `rows` under `protocol`; rows of one guidance and size share batches."""

    def __init__(
        self,
        model: StableDiffusion,
        rows: Sequence[PromptRow],
        protocol: Protocol,
        seed: int = 0,
        batch_size: int = 0,
        usual: Mapping[str, Any] | None = None,
    ) -> None:
        """`usual` are the sampling settings for what protocol and row leave open, in place of the family's.

        What a checkpoint says of its own sampling does not count: it would choose how it is audited.
        """
        self.model, self.protocol = model, protocol
        self.usual = {**type(model).sampling, **(usual or {})}
        self.batches = []
        self.trials = [trial for row in rows for trial in _planned(row, protocol, seed)]
        alike: dict[tuple[float | None, tuple[int, int] | None], list[PlannedImage]] = {}
        for trial in self.trials:
            alike.setdefault((trial.guidance_scale, trial.size), []).append(trial)
        for (_, size), part in alike.items():
            at_once = batch_size or max(1, min(128, DRAWN_AT_ONCE // math.prod(model.shape_of(size))))
            self.batches += [part[i : i + at_once] for i in range(0, len(part), at_once)]

    def images(self, batch: Sequence[PlannedImage]) -> list[np.ndarray | str]:
        """Drawn images; one that is not finite, or of a single colour, shows nothing that could be judged."""
        prompts = [trial.prompt for trial in batch]
        self.model.set_prompts(prompts)
        protocol, first = self.protocol, batch[0]
        settings = {
            "sampler": protocol.sampler,
            "num_inference_steps": protocol.num_inference_steps,
            "guidance_scale": first.guidance_scale,
        }
        chosen = {**self.usual, **{key: value for key, value in settings.items() if value is not None}}
        seeds = [int(trial.seed or 0) for trial in batch]
        drawn = self.model.generate(torch.arange(len(batch)), seeds, **chosen, size=first.size)
        return [_judgeable(image) for image in drawn]


class Read(ImageSource):
    """The images of a folder, subfolders too; a trial's row is its path in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = image_paths(folder)
        self.trials = [PlannedImage(path.relative_to(folder).as_posix(), 0) for path in files]
        self.batches = [self.trials[i : i + READ_AT_ONCE] for i in range(0, len(files), READ_AT_ONCE)]

    def images(self, batch: Sequence[PlannedImage]) -> list[np.ndarray | str]:
        """The decoded files."""
        found: list[np.ndarray | str] = []
        for trial in batch:
            try:
                found.append(read_image(self.folder / trial.row, trial.row, channels=3))
            except DataError as error:
                found.append(str(error))
        return found


def _planned(row: PromptRow, protocol: Protocol, seed: int) -> Iterator[PlannedImage]:
    """The trials of one row."""
    guidance = row.guidance_scale if protocol.guidance_scale == "row" else protocol.guidance_scale
    height = row.height if protocol.height == "row" else protocol.height
    width = row.width if protocol.width == "row" else protocol.width
    size = (int(height), int(width)) if height and width else None
    for i in range(protocol.images_per_prompt):
        if protocol.seed == "row":
            own = derive_seed(seed, "audit", row.id, i) if row.seed is None else row.seed + i
        else:
            own = derive_seed(int(protocol.seed), "audit", row.id, i)
        yield PlannedImage(row.id, i, own, row.prompt, None if guidance is None else float(guidance), size)


def _judgeable(image: torch.Tensor) -> np.ndarray | str:
    if not bool(torch.isfinite(image).all()):
        return "the model drew numbers that are not finite"
    pixels = to_uint8(image[None])[0]
    if bool((pixels == pixels[0, 0]).all()):
        return "the model drew a blank image"
    return pixels if pixels.shape[-1] == 3 else pixels.repeat(3, axis=-1)


def examined(detectors: Mapping[str, Detector], images: Sequence[np.ndarray | str]) -> list[dict[str, Any]]:
    """What every detector finds in each image: its raw scores and boxes, or `failed` and why."""
    records: list[dict[str, Any]] = [
        {"failed": image} if isinstance(image, str) else {"sha256": hashlib.sha256(image.tobytes()).hexdigest()}
        for image in images
    ]
    pairs = [(record, image) for record, image in zip(records, images, strict=True) if not isinstance(image, str)]
    for name, detector in detectors.items():
        for (record, _), found in zip(pairs, _found(detector, [image for _, image in pairs]), strict=True):
            if isinstance(found, str):
                record["failed"] = f"{name}: {found}"
                continue
            record.setdefault("scores", {})[name] = [_short(score) for score in found.scores]
            if found.boxes is not None:
                boxes = [[box[0], _short(box[1]), *(_short(side) for side in box[2:])] for box in found.boxes]
                record.setdefault("boxes", {})[name] = boxes
    for record in records:
        if "failed" in record:  # unscored is unscored: half a judgement would pass for a whole one
            record.pop("scores", None)
            record.pop("boxes", None)
    return records


def _found(detector: Detector, images: Sequence[np.ndarray]) -> list[Detection | str]:
    """What is found in each image; where a whole batch fails, its images are tried one by one."""
    if not images:
        return []
    try:
        return list(detector.detect(images))
    except Exception as error:  # whatever a foreign network raises, the image is unscored and the audit goes on
        if len(images) == 1:
            return [(str(error).strip() or type(error).__name__).splitlines()[0]]
        return [found for image in images for found in _found(detector, [image])]


def _short(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def run_trials(
    source: ImageSource,
    detectors: Mapping[str, Detector],
    folder: Path,
    name: str,
    keep: Path | None = None,
) -> int:
    """Make and judge every trial of `source` that has no record yet; several processes share the batches.

    Returns how many images were made, by all of them. Records are kept in `folder` under `name`, in the order of the
    source's trials; images in `keep` if wanted.
    """
    state = world()
    ledger = AuditRecords(folder, name)
    known = ledger.keys()
    own = read_log(ledger.part(state.process_index))
    state.wait_for_everyone()  # nobody writes before all have read
    missing = [batch for batch in source.batches if any(trial.key not in known for trial in batch)]
    mine = missing[state.process_index :: state.num_processes]
    if mine:
        log = Log(ledger.part(state.process_index), own)
        try:
            _work(source, detectors, mine, known, log, name, keep)
        finally:
            log.close()
    state.wait_for_everyone()
    if state.is_main_process and (missing or ledger.parts):
        ledger.merge(trial.key for trial in source.trials)
    state.wait_for_everyone()
    return sum(map(len, missing))


def _work(
    source: ImageSource,
    detectors: Mapping[str, Detector],
    batches: Sequence[Sequence[PlannedImage]],
    known: set[tuple[str, int]],
    log: Log,
    name: str,
    keep: Path | None,
) -> None:
    def labeler(batch: Sequence[PlannedImage], images: Sequence[np.ndarray | str]) -> None:
        new = [(trial, image) for trial, image in zip(batch, images, strict=True) if trial.key not in known]
        for (trial, image), record in zip(new, examined(detectors, [image for _, image in new]), strict=True):
            if keep is not None and not isinstance(image, str):
                write_png(kept_path(keep, trial), image)
            head = {"row": trial.row, "image": trial.image}
            log.write({**head, **({} if trial.seed is None else {"seed": trial.seed}), **record})

    bar = tqdm(total=sum(map(len, batches)), desc=f"audit {name}", unit="image", disable=None, leave=False)
    pending: Future[None] | None = None
    with bar, ThreadPoolExecutor(max_workers=1) as second:
        for batch in batches:
            images = source.images(batch)
            if pending is not None:
                pending.result()
            pending = second.submit(labeler, batch, images)
            bar.update(len(batch))
        if pending is not None:
            pending.result()


def kept_path(folder: Path, trial: PlannedImage) -> Path:
    """Where a trial's image is kept; ids that no file may be called by keep apart by their hash."""
    plain = re.sub(r"[^\w-]", "_", trial.row)[:60]
    apart = "" if plain == trial.row else "-" + hashlib.sha256(trial.row.encode()).hexdigest()[:8]
    return folder / f"{plain}{apart}-{trial.image:03d}.png"
