"""evaluate: metrics of a run beside its original from the same seeds, or of a model by itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure.core.distributed import device, shared_folder
from erasure.core.errors import OptionError
from erasure.core.run_dir import RunRecord, read_record
from erasure.erasing.record import settings_of
from erasure.erasing.result import EvaluationResult
from erasure.erasing.targets import TargetSpec, recorded_target, target_of
from erasure.evaluation.measure import measured
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import Model, load_model, resolve
from erasure.models.loading import load_unchanged


def evaluate(
    given: str | Path | Model, spec: TargetSpec | None = None, evaluation: Mapping[str, Any] | None = None
) -> EvaluationResult:
    """Measure a run (against the original it was made from) or a model (by itself).

    A run brings its own target, data and evaluation; entries of `evaluation` (fields of EvaluationConfig and of
    SamplingOptions) replace its own. A model needs a `spec` of what it should have forgotten for UA.

    Raises OptionError for a spec beside a run and for an original that changed, DataError for data that changed.
    """
    began = time.perf_counter()
    spec = spec or TargetSpec()
    record = None if isinstance(given, Model) else _erase_run(Path(given))
    if isinstance(given, Model) or record is None:
        return _evaluate_model(given, EvaluationConfig().replaced(evaluation or {}), spec, began)
    if spec != TargetSpec():
        raise OptionError(f"{given} is a run, which brings its own task and data: leave --forget, --data and so on out")
    return _evaluate_run(Path(given), record, evaluation or {}, began)


def _erase_run(folder: Path) -> RunRecord | None:
    path = folder / "run.json"
    record = read_record(path) if path.is_file() else None
    return record if record and record["verb"] == "erase" else None


def _evaluate_run(folder: Path, record: RunRecord, overrides: Mapping[str, Any], began: float) -> EvaluationResult:
    settings = settings_of(record)
    recorded = EvaluationConfig.from_json(settings["evaluation"])
    evaluation = recorded.replaced(overrides)
    evaluation.check()
    model = load_model(folder).to(device())
    original = load_unchanged(settings["model"], settings["model_hash"], str(folder)).to(device())
    target = recorded_target(original, settings)
    target.check_unchanged(settings, str(folder), images=False)
    target.prepare(model)
    before = target.outputs(original, evaluation, None)
    with shared_folder() as scratch:
        # Samples made under the run's own settings are kept in it; others are drawn aside.
        own = evaluation.samples.overrides() == recorded.samples.overrides()
        own = own and evaluation.sample_seed == recorded.sample_seed
        after = target.outputs(model, evaluation, folder / "samples" if own else scratch, before)
        scores = measured(after, evaluation.metrics)
    return EvaluationResult(
        target.task.concept,
        scores,
        measured(before, evaluation.metrics),
        time.perf_counter() - began,
        run=str(folder),
        method=settings["method"],
        seconds=record["trained"]["seconds"] if "trained" in record else None,
    )


def _evaluate_model(
    given: str | Path | Model, evaluation: EvaluationConfig, spec: TargetSpec, began: float
) -> EvaluationResult:
    evaluation.check()
    model = (given if isinstance(given, Model) else load_model(given)).to(device())
    target = target_of(model, spec)
    scores = measured(target.outputs(model, evaluation, None), evaluation.metrics)
    name = model.source if isinstance(given, Model) else resolve(given)
    return EvaluationResult(target.task.concept, scores, scores, time.perf_counter() - began, model=name)
