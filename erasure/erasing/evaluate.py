"""Evaluate a run or a model: metrics over its evidence, beside the original from the same seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure.core.distributed import device, shared_folder
from erasure.core.errors import OptionError
from erasure.core.run_dir import RunRecord, read_record
from erasure.erasing.targets import TargetSpec, recorded_target, target_of
from erasure.evaluation.measure import measured
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import load_model, resolve


def evaluate(given: str, wanted: TargetSpec, evaluation: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measure a run (against the original it was made from) or a model (by itself).

    A run brings its own task, data and evaluation; entries of `evaluation` (fields of EvaluationConfig and of
    SamplingOptions) replace its own. A bare model needs what it is asked to have forgotten for UA.
    """
    began = time.perf_counter()
    document = _erase_run(given)
    if document is None:
        result = _evaluate_model(given, EvaluationConfig().replaced(evaluation or {}), wanted)
    elif wanted != TargetSpec():
        raise OptionError(f"{given} is a run, which brings its own task and data: leave --forget, --data and so on out")
    else:
        result = _evaluate_run(Path(given), document, evaluation or {})
    return {**result, "evaluation_seconds": time.perf_counter() - began}


def _erase_run(given: str) -> RunRecord | None:
    path = Path(given) / "run.json"
    document = read_record(path) if path.is_file() else None
    return document if document and document["verb"] == "erase" else None


def _evaluate_run(folder: Path, document: RunRecord, overrides: Mapping[str, Any]) -> dict[str, Any]:
    settings = document["settings"]
    evaluation = EvaluationConfig.from_json(settings["evaluation"]).replaced(overrides)
    evaluation.check()
    model = load_model(folder).to(device())
    original = load_model(settings["model"]).to(device())
    if original.hash != settings["model_hash"]:
        raise OptionError(
            f"{settings['model']} is no longer the model that {folder} was made from: its weights have changed"
        )
    target = recorded_target(original, settings)
    target.prepare(model)
    before = target.outputs(original, evaluation, None)
    with shared_folder() as scratch:
        # Samples made under the run's own settings are kept in it; others are drawn aside.
        own = evaluation.samples.overrides() == EvaluationConfig.from_json(settings["evaluation"]).samples.overrides()
        own = own and evaluation.sample_seed == settings["evaluation"]["sample_seed"]
        place = folder / "samples" if own else scratch
        after = target.outputs(model, evaluation, place, before)
        result = measured(after, evaluation.metrics).to_dict()
    trained = document.get("trained", {})
    return {
        "run": str(folder),
        "method": settings["method"],
        "forget": target.task.concept,
        "seconds": trained.get("seconds"),
        **result,
        "original": {"seconds": 0.0, **measured(before, evaluation.metrics).to_dict()},
    }


def _evaluate_model(given: str, evaluation: EvaluationConfig, wanted: TargetSpec) -> dict[str, Any]:
    evaluation.check()
    model = load_model(given).to(device())
    target = target_of(model, wanted)
    result = measured(target.outputs(model, evaluation, None), evaluation.metrics).to_dict()
    row = {"seconds": 0.0, **result}
    return {"model": resolve(given), "forget": target.task.concept, **row, "original": row}
