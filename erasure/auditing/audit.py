"""Audit a model: prompts, detectors, counts with intervals, and a verdict.

What was generated and how each detector scored it is recorded image by image; classes, thresholds and the limit are
applied to the records afterwards, so that the same folder can be evaluated again without generating anything. Missing
or unscored images never lead to a pass.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypedDict

from erasure.auditing.audited_model import AuditedModel, Comparison, compared_models, device_of
from erasure.auditing.controls import run_controls, with_base
from erasure.auditing.criteria import DetectorFacts, detected_concept, detector_facts
from erasure.auditing.detectors import open_detector
from erasure.auditing.detectors.base import Detector
from erasure.auditing.kept_images import measure_images, thumbnails
from erasure.auditing.records import AuditRecords, ImageRecord
from erasure.auditing.report import write_audit_report
from erasure.auditing.request import AuditRequest
from erasure.auditing.result import (
    SCHEMA,
    AuditCounts,
    AuditResult,
    BaseIdentity,
    Control,
    DetectedConcept,
    DetectorIdentity,
    PromptFacts,
)
from erasure.auditing.scoring import score_images
from erasure.auditing.tables import tables
from erasure.auditing.verdict import Verdict, verdict
from erasure.core.distributed import agreed, device, is_main
from erasure.core.files import require_disk_space
from erasure.core.run_dir import RunDir
from erasure.prompts.prompt_set import PromptSet

SHORT = ("verdict", "planned", "generated", "scored", "failed", "refused", "rate")


def audit(request: AuditRequest, out: str | Path) -> AuditResult:
    """Run or continue an audit in the folder `out`, and write audit.json and report.html there.

    Raises OptionError for a request that makes no sense, ModelError for a model that does not load whole, RunError when
    `out` holds another audit.
    """
    request.check()
    detectors = {name: open_detector(name, options, device()) for name, options in request.detectors.items()}
    concept = detected_concept(detectors, request.protocol, request.classes, request.threshold)
    facts = detector_facts(detectors, request.protocol, concept, request.classes)
    deciding = {name: detectors[name] for name in (concept.detector, *concept.others)}
    controls = run_controls(deciding, facts, _folder(request.positive_control), _folder(request.negative_control))
    compared = compared_models(request)
    settings: dict[str, object] = {
        **{role: one.identity.to_dict() for role, one in compared},
        "prompts": None if request.prompts is None else request.prompts.rows_hash,
        "protocol": None if request.prompts is None else request.protocol.drawing,
        "detectors": {name: detector.hash for name, detector in detectors.items()},
        "seed": request.seed,
    }
    with RunDir(out, "audit", settings) as run:
        run.document = agreed(run.document)
        if request.keep_images:
            run.update(keep_images=True)
        production = _score_all(run, compared, detectors, request)
        result: AuditResult | None = None
        if is_main():
            counts = _counted(request, run.folder, compared, concept, facts)
            checked = with_base(controls, counts.base_rate, concept.detector)
            result = _result(request, run.folder, compared, detectors, concept, counts, checked, production)
            _write(run, result, compared.model)
            document = result.to_dict()
            run.finish({key: document[key] for key in SHORT})
        else:
            run.finish({})
        result = agreed(result)
        assert result is not None
        return result


def _folder(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


class _Production(TypedDict):
    """How the images were made, and how fast; fields of AuditResult."""

    device: str
    versions: Mapping[str, str]
    seconds: float
    images_per_second: float | None


def _score_all(
    run: RunDir, compared: Comparison, detectors: Mapping[str, Detector], request: AuditRequest
) -> _Production:
    """Make and score the missing images of each model."""
    keep = request.keep_images or (request.measures and request.model is not None)
    for role, audited in compared:
        folder = run.folder / "images" / role if keep else None
        if keep:
            pixels = math.prod(audited.model.image_shape) if audited.model else 0
            require_disk_space(
                run.folder, pixels * len(audited.source.planned), "keeping the images", "leave --keep-images out"
            )
        began = time.perf_counter()
        made = _score_one(run.folder, role, audited, detectors, folder)
        if made:
            spent = run.document.get("seconds", 0.0) + time.perf_counter() - began
            run.update(seconds=spent, made=run.document.get("made", 0) + made)
    seconds, images = run.document.get("seconds", 0.0), run.document.get("made", 0)
    return {
        "device": str(device()),
        "versions": run.document.get("versions", {}),
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
    }


def _score_one(
    folder: Path, role: str, audited: AuditedModel, detectors: Mapping[str, Detector], keep: Path | None
) -> int:
    """Score the images of one model, which is on the device meanwhile; returns how many were made."""
    if audited.model is None:
        return score_images(audited.source, detectors, folder, role, keep)
    before = device_of(audited.model)
    audited.model.to(device())
    try:
        return score_images(audited.source, detectors, folder, role, keep)
    finally:
        audited.model.to(before)


def _counted(
    request: AuditRequest,
    folder: Path,
    compared: Comparison,
    concept: DetectedConcept,
    facts: Mapping[str, DetectorFacts],
) -> AuditCounts:
    return tables(
        AuditRecords(folder, "model"),
        _shared(folder, compared),
        compared.model.rows,
        facts,
        concept,
        planned=len(compared.model.source.planned),
        refused=compared.refused,
        pair=compared.is_paired,
        seed=request.seed,
        maximum=(request.protocol.maximum_over, request.protocol.draws),
    )


def _shared(folder: Path, compared: Comparison) -> Iterator[ImageRecord] | None:
    """The base's records of rows that the model has too: a folder of images may hold others."""
    if compared.base is None:
        return None
    known = {row.id for row in compared.model.rows}
    return (record for record in AuditRecords(folder, "base") if record.row in known)


def _result(
    request: AuditRequest,
    folder: Path,
    compared: Comparison,
    detectors: Mapping[str, Detector],
    concept: DetectedConcept,
    counts: AuditCounts,
    controls: list[Control],
    production: _Production,
) -> AuditResult:
    found = _verdict(request, counts, controls, concept)
    measured = measure_images(request, compared, folder)
    prompts, base = request.prompts, compared.base
    return AuditResult(
        schema=SCHEMA,
        verdict=found.name,
        reasons=found.reasons,
        claim=found.claim,
        max_rate=request.max_rate,
        concept=concept,
        protocol=None if prompts is None else request.recorded_protocol.as_json(),
        prompts=None if prompts is None else _prompt_facts(prompts),
        model=compared.model.identity,
        base=None if base is None else BaseIdentity(**vars(base.identity), metrics=measured.base),
        detectors={name: _identity(detector) for name, detector in detectors.items()},
        seed=request.seed,
        changed=compared.changes(),
        controls=tuple(controls),
        metrics=measured.metrics,
        not_measured=measured.not_measured,
        out=str(folder),
        **{field.name: getattr(counts, field.name) for field in fields(AuditCounts)},
        **production,
    )


def _verdict(request: AuditRequest, counts: AuditCounts, controls: list[Control], concept: DetectedConcept) -> Verdict:
    """The verdict; its claim says what an occurrence is, and what is missing without a base."""
    place = None
    if request.prompts is not None:
        place = f"protocol {request.recorded_protocol.name}, prompts {request.prompts.name}"
    refused = counts.refused * request.protocol.images_per_prompt  # images of rows that were refused were not tried
    found = verdict(counts, request.max_rate, controls, counts.planned + refused, place)
    occurrence = f"{', '.join(concept.classes)} ({concept.detector}, score at least {concept.threshold:g})"
    claim = f"{found.claim}; an occurrence is {occurrence}"
    if counts.base_rate is None and request.prompts is not None:
        claim += "; without --base nothing shows that these prompts produce the concept in a model before erasure"
    return Verdict(found.name, found.reasons, claim)


def _prompt_facts(prompts: PromptSet) -> PromptFacts:
    return PromptFacts(prompts.name, len(prompts.rows), prompts.file_hash, prompts.rows_hash, prompts.filters)


def _identity(detector: Detector) -> DetectorIdentity:
    return DetectorIdentity(
        hash=detector.hash,
        classes=tuple(detector.classes),
        core=tuple(detector.core),
        wide=tuple(detector.wide) or None,
        threshold=detector.threshold,
        options=asdict(detector.options),
    )


def _write(run: RunDir, result: AuditResult, audited: AuditedModel) -> None:
    """Write audit.json and report.html; the images are removed unless some call asked to keep them."""
    keep = bool(run.document.get("keep_images"))
    result.write()
    classes = result.detectors[result.concept.detector].classes
    shown = thumbnails(run.folder, audited, result.concept, classes) if keep else []
    write_audit_report(result, run.folder / "report.html", shown)
    if not keep:
        shutil.rmtree(run.folder / "images", ignore_errors=True)
