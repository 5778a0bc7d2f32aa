"""What an audit found, as audit.json has it: the answer first, then who judged what, the metrics, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erasure.audit_evidence import AuditEvidence
from erasure.audit_report import SHOWN, Thumbnail
from erasure.audit_sides import Request, Side, pairs
from erasure.audit_tables import Counted
from erasure.controls import image_paths
from erasure.detectors._base import Detector
from erasure.evaluate import measured
from erasure.images import read_image
from erasure.ledger import Ledger
from erasure.run import Run, read_json
from erasure.trials import Read, Trial, kept_path
from erasure.verdict import verdict

SCHEMA = 1


def answer(
    request: Request, counts: Mapping[str, Any], checked: Sequence[Mapping[str, Any]], concept: Counted
) -> dict[str, Any]:
    """What stands at the top of audit.json."""
    place = f"protocol {request.protocol.name}, prompts {request.prompts.name}" if request.prompts is not None else None
    lost = counts["refused"] * request.protocol.images_per_prompt  # rows that were refused were not tried either
    seen = f"{', '.join(concept.classes)} ({concept.detector}, score at least {concept.threshold:g})"
    found, reasons, claim = verdict(counts, request.max_rate, checked, counts["planned"] + lost, place)
    claim += f"; an occurrence is {seen}"
    if counts["base_rate"] is None and request.prompts is not None:
        claim += "; without --base nothing shows that these prompts bring out the concept in an uncleaned model"
    numbers = ("planned", "generated", "scored", "failed", "refused")
    return {
        "schema": SCHEMA,
        "verdict": found,
        "reasons": reasons,
        "claim": claim,
        **{name: counts[name] for name in numbers},
        "max_rate": request.max_rate,
        "rate": counts["rate"],
    }


def named(
    request: Request,
    sides: Mapping[str, Side],
    detectors: Mapping[str, Detector],
    concept: Counted,
    of_base: Mapping[str, Any],
) -> dict[str, Any]:
    """Who was asked what, and who judged."""
    main = detectors[concept.detector]
    prompts = request.prompts
    return {
        "concept": {**asdict(concept), "classes": list(concept.classes), "wide": list(main.wide) or None},
        "protocol": request.protocol.as_json() if prompts is not None else None,
        "prompts": None if prompts is None else prompts.as_json(),
        "model": dict(sides["model"].settings),
        "base": {**sides["base"].settings, "metrics": dict(of_base)} if "base" in sides else None,
        "detectors": {
            name: {
                "hash": detector.hash,
                "classes": list(detector.classes),
                "core": list(detector.core),
                "wide": list(detector.wide) or None,
                "threshold": detector.threshold,
                "options": asdict(detector.options),
            }
            for name, detector in detectors.items()
        },
        "seed": request.seed,
    }


def metrics(request: Request, run: Run, sides: Mapping[str, Side]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`metrics` and `not_measured` on the same images, and those metrics of the base that need no other model.

    What an earlier call measured stays; what is asked for when the images are gone is not measured.
    """
    path = run.folder / "audit.json"
    before = read_json(path) if path.is_file() else {}
    kept = {key: before.get(key) or {} for key in ("metrics", "not_measured")}
    of_base = (before.get("base") or {}).get("metrics") or {}
    if not request.measures:
        return kept, of_base
    trials = _scored(run, sides)
    images = {name: [_path(run, side, name, trial) for trial in trials] for name, side in sides.items()}
    if not all(path.is_file() for paths in images.values() for path in paths):
        why = "the images of an earlier call were not kept: audit into another --out"
        gone = dict.fromkeys(set(request.judging.metrics or AuditEvidence.default_metrics) - set(kept["metrics"]), why)
        return {"metrics": kept["metrics"], "not_measured": gone}, of_base
    real = image_paths(Path(request.reference)) if request.reference else []
    prompts = {row.id: row.prompt for row in sides["model"].rows}
    names = {name: getattr(request.judging, name) for name in ("clip", "inception", "dinov2", "classifier")}

    def evidence(side: str, reference: Sequence[Path], paired: bool) -> AuditEvidence:
        asked = [prompts[trial.row] for trial in trials]
        return AuditEvidence(images[side], asked, reference, paired=paired, **names)

    paired = not real and pairs(sides)
    found = measured(evidence("model", real or images.get("base", []), paired), request.judging.metrics)
    base = measured(evidence("base", real, False), ())["metrics"] if "base" in images else {}
    return {key: found[key] for key in ("metrics", "not_measured")}, base


def thumbnails(run: Run, side: Side, concept: Counted, classes: Sequence[str]) -> list[Thumbnail]:
    """The kept images with the largest scores for the concept; the report shows them pixelated."""
    if isinstance(side.source, Read):
        return []
    columns = [list(classes).index(one) for one in concept.classes]
    trials = {trial.key: trial for trial in side.source.trials}
    scored = [
        (max(record["scores"][concept.detector][column] for column in columns), record["row"], record["image"])
        for record in Ledger(run.folder, "model")
        if "scores" in record
    ]
    prompts = {row.id: row.prompt for row in side.rows}
    found = []
    for score, row, image in sorted(scored, key=lambda one: -one[0])[:SHOWN]:
        path = _path(run, side, "model", trials[row, image])
        if not path.is_file():  # drawn by a call that kept none
            continue
        found.append(Thumbnail(row, prompts[row], read_image(path, str(path)), f"{concept.detector} {score:.2f}"))
    return found


def _scored(run: Run, sides: Mapping[str, Side]) -> list[Trial]:
    """The model's trials that were scored, on both sides if the two are paired."""
    names = list(sides) if pairs(sides) else ["model"]
    failed = {
        (record["row"], record["image"]) for name in names for record in Ledger(run.folder, name) if "failed" in record
    }
    shared = set.intersection(*({trial.key for trial in sides[name].source.trials} for name in names))
    return [trial for trial in sides["model"].source.trials if trial.key in shared - failed]


def _path(run: Run, side: Side, name: str, trial: Trial) -> Path:
    source = side.source
    return source.folder / trial.row if isinstance(source, Read) else kept_path(run.folder / "images" / name, trial)
