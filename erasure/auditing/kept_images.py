"""The images of an audit that are kept on disk: metrics on them, and pixelated thumbnails for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from erasure.auditing.audited_model import AuditedModel, Comparison, Role
from erasure.auditing.image_metrics import AuditOutputs
from erasure.auditing.image_sources import FolderImages, PlannedImage
from erasure.auditing.records import AuditRecords
from erasure.auditing.report import SHOWN, Thumbnail
from erasure.auditing.request import AuditRequest
from erasure.auditing.result import AuditResult, DetectedConcept
from erasure.auditing.scoring import kept_path
from erasure.data.images import image_paths, read_image
from erasure.evaluation.measure import measured
from erasure.evaluation.metrics.base import Score
from erasure.evaluation.settings import EvaluationConfig


@dataclass(frozen=True)
class Measured:
    """Metrics of the model's images, why others were not measured, and metrics of the base's that need no other."""

    metrics: Mapping[str, Score]
    not_measured: Mapping[str, str]
    base: Mapping[str, Score]


def measure_images(request: AuditRequest, compared: Comparison, folder: Path) -> Measured:
    """Measure the images of the audit in `folder`.

    What an earlier call measured is kept. Metrics that are asked for when the images are no longer there are listed as
    not measured.
    """
    earlier = _earlier(folder)
    if not request.measures:
        return earlier
    planned = _scored(compared, folder)
    images = {role: [image_path(folder, role, one, image) for image in planned] for role, one in compared}
    if not all(map(Path.is_file, chain(*images.values()))):
        why = "the images of an earlier call were not kept: audit into another --out"
        asked = request.evaluation.metrics or AuditOutputs.default_metrics
        return Measured(earlier.metrics, dict.fromkeys(sorted(set(asked) - set(earlier.metrics)), why), earlier.base)
    by_row = {row.id: row.prompt for row in compared.model.rows}
    prompts = [by_row[image.row] for image in planned]
    return _measure(request.evaluation, images, prompts, _folder_images(request.reference), compared.is_paired)


def _folder_images(folder: str | Path | None) -> list[Path]:
    return image_paths(Path(folder)) if folder else []


def _measure(
    config: EvaluationConfig, images: Mapping[Role, list[Path]], prompts: list[str], real: list[Path], paired: bool
) -> Measured:
    """Compare the model's images with the `real` ones, or else with the base's, and the base's with the real ones."""
    base = images.get("base", [])
    model = AuditOutputs(images["model"], prompts, real or base, config, paired=paired and not real)
    found = measured(model, config.metrics)
    of_base = measured(AuditOutputs(base, prompts, real, config), ()).metrics if "base" in images else {}
    return Measured(found.metrics, found.not_measured, of_base)


def _earlier(folder: Path) -> Measured:
    if not (folder / "audit.json").is_file():
        return Measured({}, {}, {})
    before = AuditResult.read(folder)
    return Measured(before.metrics, before.not_measured, {} if before.base is None else before.base.metrics)


def thumbnails(
    folder: Path, audited: AuditedModel, concept: DetectedConcept, classes: Sequence[str]
) -> list[Thumbnail]:
    """The kept images with the largest scores for the concept; `classes` are those of the main detector."""
    if isinstance(audited.source, FolderImages):
        return []
    columns = [list(classes).index(one) for one in concept.classes]
    scored = [
        (max(record.scores[concept.detector][column] for column in columns), record.key)
        for record in AuditRecords(folder, "model")
        if record.scores is not None
    ]
    planned = {image.key: image for image in audited.source.planned}
    prompts = {row.id: row.prompt for row in audited.rows}
    found = []
    for score, key in sorted(scored, key=lambda one: -one[0])[:SHOWN]:
        path = image_path(folder, "model", audited, planned[key])
        if path.is_file():  # a call without --keep-images may have generated it
            row = key[0]
            found.append(Thumbnail(row, prompts[row], read_image(path, str(path)), f"{concept.detector} {score:.2f}"))
    return found


def _scored(compared: Comparison, folder: Path) -> list[PlannedImage]:
    """The model's planned images that were scored, for both models if the two are paired."""
    used = dict(compared) if compared.is_paired else {"model": compared.model}
    failed = {record.key for role in used for record in AuditRecords(folder, role) if record.failed is not None}
    shared = set.intersection(*({image.key for image in one.source.planned} for one in used.values()))
    return [image for image in compared.model.source.planned if image.key in shared - failed]


def image_path(folder: Path, role: str, audited: AuditedModel, planned: PlannedImage) -> Path:
    """Where an image of the audit in `folder` is: in the folder that was given, or among the kept ones."""
    source = audited.source
    if isinstance(source, FolderImages):
        return source.folder / planned.row
    return kept_path(folder / "images" / role, planned)
