"""Evaluate a run or a model: metrics over its evidence, beside the original from the same seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasure import registry
from erasure.errors import NotApplicableError, OptionError
from erasure.evidence import Evidence
from erasure.judging import Judging
from erasure.models import load_model, resolve
from erasure.processes import device, shared_folder
from erasure.run import read_record
from erasure.subjects import Wanted, recorded, subject_of


def measured(evidence: Evidence, metrics: Sequence[str]) -> dict[str, Any]:
    """`{"ua", "ra", "metrics": {name: score}, "not_measured": {name: reason}}`.

    Without named `metrics` those that apply are measured and the others listed with the reason; a named one that does
    not apply raises NotApplicableError.
    """
    scores: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    defaults = [name for name in evidence.default_metrics if not (name == "forget_share" and evidence.has_classes)]
    for name in metrics or defaults:
        try:
            scores[name] = registry.load("metrics", name)().measure(evidence).as_json()
        except NotApplicableError as error:
            if metrics and not (name == "paired_distance" and evidence.original is None):
                raise NotApplicableError(f"--metrics {name} cannot be measured: {error}") from error
            skipped[name] = str(error)
    kept = "ra" if "ra" in scores else "ira"  # what was kept, in the words of each kind of model
    headline = {key: scores[name]["value"] if name in scores else None for key, name in (("ua", "ua"), ("ra", kept))}
    return {**headline, "metrics": scores, "not_measured": skipped, "judge_hash": evidence.judge_hash}


def evaluate(given: str, wanted: Wanted, judging: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measure a run (against the original it was made from) or a model (by itself).

    A run brings its own task, data and judging; entries of `judging` (fields of Judging and of SampleSettings) replace
    its own. A bare model needs what it is asked to have forgotten for UA.
    """
    began = time.perf_counter()
    document = _erase_run(given)
    if document is None:
        result = _evaluate_model(given, Judging().replaced(judging or {}), wanted)
    elif wanted != Wanted():
        raise OptionError(f"{given} is a run, which brings its own task and data: leave --forget, --data and so on out")
    else:
        result = _evaluate_run(Path(given), document, judging or {})
    return {**result, "evaluation_seconds": time.perf_counter() - began}


def _erase_run(given: str) -> dict[str, Any] | None:
    path = Path(given) / "run.json"
    document = read_record(path) if path.is_file() else None
    return document if document and document["verb"] == "erase" else None


def _evaluate_run(folder: Path, document: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    settings = document["settings"]
    judging = Judging.from_json(settings["judging"]).replaced(overrides)
    judging.check()
    model = load_model(folder).to(device())
    original = load_model(settings["model"]).to(device())
    if original.hash != settings["model_hash"]:
        raise OptionError(
            f"{settings['model']} is no longer the model that {folder} was made from: its weights have changed"
        )
    subject = recorded(original, settings)
    subject.prepare(model)
    before = subject.evidence(original, judging, None)
    with shared_folder() as scratch:
        # Samples made under the run's own settings are kept in it; others are drawn aside.
        own = judging.samples.overrides() == Judging.from_json(settings["judging"]).samples.overrides()
        own = own and judging.sample_seed == settings["judging"]["sample_seed"]
        place = folder / "samples" if own else scratch
        after = subject.evidence(model, judging, place, before)
        result = measured(after, judging.metrics)
    trained = document.get("trained", {})
    return {
        "run": str(folder),
        "method": settings["method"],
        "forget": subject.task.concept,
        "seconds": trained.get("seconds"),
        **result,
        "original": {"seconds": 0.0, **measured(before, judging.metrics)},
    }


def _evaluate_model(given: str, judging: Judging, wanted: Wanted) -> dict[str, Any]:
    judging.check()
    model = load_model(given).to(device())
    subject = subject_of(model, wanted)
    result = measured(subject.evidence(model, judging, None), judging.metrics)
    row = {"seconds": 0.0, **result}
    return {"model": resolve(given), "forget": subject.task.concept, **row, "original": row}
