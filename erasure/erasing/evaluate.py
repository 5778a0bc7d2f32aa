"""Evaluate a run or a model: metrics over its evidence, beside the original from the same seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure.core.distributed import device, shared_folder
from erasure.core.errors import OptionError
from erasure.core.run_dir import read_record
from erasure.erasing.targets import Wanted, recorded, subject_of
from erasure.evaluation.measure import measured
from erasure.evaluation.settings import Judging
from erasure.models import load_model, resolve


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
