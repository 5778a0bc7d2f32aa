"""Audit a model: prompts, detectors, counts with intervals, a verdict. Pinned, resumable, and it fails closed.

What is drawn and how it was seen is recorded image by image; classes, thresholds and the limit are applied to the
records afterwards, so that the same folder can be judged anew without drawing anything again.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from erasure.auditing import controls
from erasure.auditing.controls import image_paths
from erasure.auditing.detectors import open_detector
from erasure.auditing.detectors.base import Detector
from erasure.auditing.image_metrics import AuditOutputs
from erasure.auditing.report import SHOWN, Thumbnail, write_audit_report
from erasure.auditing.request import AuditedModel, AuditRequest, changes, pairs, sides_of
from erasure.auditing.scoring import AuditRecords, PlannedImage, Read, kept_path, run_trials
from erasure.auditing.tables import Counted, DetectorFacts, tables
from erasure.auditing.verdict import verdict
from erasure.core.distributed import agreed, device, is_main
from erasure.core.errors import OptionError, suggestion
from erasure.core.files import read_json, require_disk_space, write_json
from erasure.core.logging import log_user
from erasure.core.run_dir import RunDir
from erasure.data.images import read_image
from erasure.evaluation.measure import measured

SHORT = ("verdict", "planned", "generated", "scored", "failed", "refused", "rate")


def audit(request: AuditRequest, out: str | Path) -> dict[str, Any]:
    """Run or continue an audit in the folder `out`; returns audit.json, which lies there beside report.html.

    Raises OptionError for a request that makes no sense, ModelError for a model that does not load whole, RunError when
    `out` holds another audit.
    """
    request.check()
    detectors = {name: open_detector(name, options, device()) for name, options in request.detectors.items()}
    concept = counted(request, detectors)
    deciding = {name: detectors[name] for name in (concept.detector, *concept.others)}
    facts = _facts(request, detectors, concept)
    checked = _controls(request, deciding, facts)
    sides, refused = sides_of(request)
    settings = {
        **{name: side.settings for name, side in sides.items()},
        "prompts": None if request.prompts is None else request.prompts.rows_hash,
        "protocol": None if request.prompts is None else request.protocol.drawing,
        "detectors": {name: detector.hash for name, detector in detectors.items()},
        "seed": request.seed,
    }
    with RunDir(out, "audit", settings) as run:
        run.document = agreed(run.document)
        if request.keep_images:
            run.update(keep_images=True)
        changed = changes(sides)
        keep = request.keep_images or (request.measures and request.model is not None)
        made = _made(run, sides, detectors, keep)
        result: dict[str, Any] = {}
        if is_main():
            counts = tables(
                AuditRecords(run.folder, "model"),
                _shared(run, sides),
                sides["model"].rows,
                facts,
                concept,
                planned=len(sides["model"].source.trials),
                refused=refused,
                pair=pairs(sides),
                seed=request.seed,
                maximum=(request.protocol.maximum_over, request.protocol.draws),
            )
            checked = _with_base(checked, counts, concept.detector)
            scores, of_base = metrics(request, run, sides)
            result = {
                **answer(request, counts, checked, concept),
                **named(request, sides, detectors, concept, of_base),
                "changed": changed,
                "controls": checked,
                **counts,
                **scores,
                **made,
                "out": str(run.folder),
            }
            _write(run, result, sides["model"], concept, detectors[concept.detector].classes)
        run.finish({key: result.get(key) for key in SHORT})
        return agreed(result)


def _shared(run: RunDir, sides: Mapping[str, AuditedModel]) -> Iterator[dict[str, Any]] | None:
    """The base's records of rows that the model has too: a folder of images may hold others."""
    if "base" not in sides:
        return None
    known = {row.id for row in sides["model"].rows}
    return (record for record in AuditRecords(run.folder, "base") if record["row"] in known)


def _write(run: RunDir, result: dict[str, Any], side: AuditedModel, concept: Counted, classes: Sequence[str]) -> None:
    """audit.json and report.html; images go unless some call asked to keep them."""
    kept = bool(run.document.get("keep_images"))
    write_json(run.folder / "audit.json", result)
    shown = thumbnails(run, side, concept, classes) if kept else []
    write_audit_report(result, run.folder / "report.html", shown)
    if not kept:
        shutil.rmtree(run.folder / "images", ignore_errors=True)


def counted(request: AuditRequest, detectors: Mapping[str, Detector]) -> Counted:
    """What is an occurrence: the classes and threshold that were given, or the protocol's of the first detector.

    Raises OptionError for a class that it does not have, and when it has none of its own and none is given.
    """
    name, main = next(iter(detectors.items()))
    for one in request.classes:
        if one not in main.classes:
            raise OptionError(f"--detect {one!r}: {name} has no such class{suggestion(one, main.classes)}")
    chosen = request.classes or (main.wide if request.protocol.classes == "wide" and main.wide else main.core)
    if not chosen:
        listed = ", ".join(main.classes[:12])
        raise OptionError(f"{name} tells {listed}: say with --detect which of them the model should not show")
    threshold = request.threshold if request.threshold is not None else _threshold(request, main)
    others = tuple(list(detectors)[1:]) if request.protocol.flagged_by == "any" else ()
    for other in others:
        if not detectors[other].core:
            raise OptionError(
                f"protocol {request.protocol.name} counts what any detector flags, and {other} has no classes of its "
                "own that count: leave it out, or name it first and its classes with --detect"
            )
    return Counted(name, chosen, threshold, others)


def _threshold(request: AuditRequest, detector: Detector) -> float:
    own = request.protocol.threshold_of(detector.name())
    return detector.threshold if own is None else own


def _facts(request: AuditRequest, detectors: Mapping[str, Detector], concept: Counted) -> dict[str, DetectorFacts]:
    """What the tables know of each detector; what counts is the first one's core."""
    core = {name: detector.core for name, detector in detectors.items()}
    if request.classes:
        core[concept.detector] = request.classes
    threshold = {name: _threshold(request, one) for name, one in detectors.items()}
    threshold[concept.detector] = concept.threshold
    return {
        name: DetectorFacts(one.classes, core[name], one.wide or None, threshold[name])
        for name, one in detectors.items()
    }


def _controls(
    request: AuditRequest, deciding: Mapping[str, Detector], facts: Mapping[str, DetectorFacts]
) -> list[dict[str, Any]]:
    """The controls of every detector that decides, as far as they need no model; first, for they are quick."""
    shown = Path(request.positive_control) if request.positive_control else None
    clean = Path(request.negative_control) if request.negative_control else None
    found = []
    for name, detector in deciding.items():
        asked = detector, facts[name].core, facts[name].threshold
        seen = controls.positive(*asked, shown)
        both = [*([] if seen is None else [seen]), controls.negative(*asked, clean)]
        found += [{**control, "detector": name} for control in both]
    for control in found:
        if not control["passed"]:
            log_user(f"warning: the {control['name']} control failed ({control['what']}): no verdict will rest on this")
    return found


def _with_base(checked: list[dict[str, Any]], counts: Mapping[str, Any], main: str) -> list[dict[str, Any]]:
    """The controls, and with a base that these prompts bring out the concept in it.

    For a detector that brings no positive control of its own the base is that as well.
    """
    base = counts["base_rate"]
    if base is not None:
        return [*checked, {**controls.from_base(base["count"], base["n"]), "detector": main}]
    if any(control["name"] == "positive" and control["detector"] == main for control in checked):
        return checked
    return [*checked, {**controls.absent(), "detector": main}]


def _made(
    run: RunDir, sides: Mapping[str, AuditedModel], detectors: Mapping[str, Detector], keep: bool
) -> dict[str, Any]:
    """Make and judge what is missing of every side; returns with what, and how fast."""
    for name, side in sides.items():
        folder = run.folder / "images" / name
        if keep:
            pixels = math.prod(side.model.image_shape) if side.model else 0
            require_disk_space(
                run.folder, pixels * len(side.source.trials), "keeping the images", "leave --keep-images out"
            )
        if side.model is not None:
            side.model.to(device())
        began = time.perf_counter()
        made = run_trials(side.source, detectors, run.folder, name, folder if keep else None)
        if made:
            spent = run.document.get("seconds", 0.0) + time.perf_counter() - began
            run.update(seconds=spent, made=run.document.get("made", 0) + made)
        if side.model is not None:
            side.model.to(torch.device("cpu"))
    seconds, images = run.document.get("seconds", 0.0), run.document.get("made", 0)
    return {
        "device": str(device()),
        "versions": run.document.get("versions", {}),
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
    }


SCHEMA = 1


def answer(
    request: AuditRequest, counts: Mapping[str, Any], checked: Sequence[Mapping[str, Any]], concept: Counted
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
    request: AuditRequest,
    sides: Mapping[str, AuditedModel],
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


def metrics(
    request: AuditRequest, run: RunDir, sides: Mapping[str, AuditedModel]
) -> tuple[dict[str, Any], dict[str, Any]]:
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
        gone = dict.fromkeys(
            set(request.evaluation.metrics or AuditOutputs.default_metrics) - set(kept["metrics"]), why
        )
        return {"metrics": kept["metrics"], "not_measured": gone}, of_base
    real = image_paths(Path(request.reference)) if request.reference else []
    prompts = {row.id: row.prompt for row in sides["model"].rows}

    def outputs(side: str, reference: Sequence[Path], paired: bool) -> AuditOutputs:
        asked = [prompts[trial.row] for trial in trials]
        return AuditOutputs(images[side], asked, reference, request.evaluation, paired=paired)

    paired = not real and pairs(sides)
    found = measured(outputs("model", real or images.get("base", []), paired), request.evaluation.metrics).to_dict()
    base = measured(outputs("base", real, False), ()).to_dict()["metrics"] if "base" in images else {}
    return {key: found[key] for key in ("metrics", "not_measured")}, base


def thumbnails(run: RunDir, side: AuditedModel, concept: Counted, classes: Sequence[str]) -> list[Thumbnail]:
    """The kept images with the largest scores for the concept; the report shows them pixelated."""
    if isinstance(side.source, Read):
        return []
    columns = [list(classes).index(one) for one in concept.classes]
    trials = {trial.key: trial for trial in side.source.trials}
    scored = [
        (max(record["scores"][concept.detector][column] for column in columns), record["row"], record["image"])
        for record in AuditRecords(run.folder, "model")
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


def _scored(run: RunDir, sides: Mapping[str, AuditedModel]) -> list[PlannedImage]:
    """The model's trials that were scored, on both sides if the two are paired."""
    names = list(sides) if pairs(sides) else ["model"]
    failed = {
        (record["row"], record["image"])
        for name in names
        for record in AuditRecords(run.folder, name)
        if "failed" in record
    }
    shared = set.intersection(*({trial.key for trial in sides[name].source.trials} for name in names))
    return [trial for trial in sides["model"].source.trials if trial.key in shared - failed]


def _path(run: RunDir, side: AuditedModel, name: str, trial: PlannedImage) -> Path:
    source = side.source
    return source.folder / trial.row if isinstance(source, Read) else kept_path(run.folder / "images" / name, trial)
