"""Evaluate a run or a model: metrics over its evidence, beside the original from the same seeds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from erasure import registry
from erasure.data import Dataset, load_dataset
from erasure.errors import DataError, NotApplicableError, OptionError
from erasure.evidence import Evidence
from erasure.inception import inception_file
from erasure.models import Model, load_family, load_model, resolve, shipped_names
from erasure.models.classifier import Classifier
from erasure.processes import device
from erasure.run import cache_folder, fingerprint, read_record
from erasure.samples import DRAWING, SampleSettings
from erasure.task import Task

DEFAULT_METRICS = ("ua", "ra", "forget_share", "fd_classifier", "paired_distance")


@dataclass(frozen=True)
class Judging:
    """How models are judged: which metrics, by whom, on which samples."""

    metrics: tuple[str, ...] = ()
    classifier: str | None = None
    inception: str | None = None
    samples: SampleSettings = field(default_factory=SampleSettings)
    sample_seed: int = 0

    def check(self) -> None:
        """Raise OptionError for an unknown metric or a value outside its range."""
        self.samples.check()
        if any(registry.load("metrics", name).needs_inception for name in self.metrics):
            inception_file(self.inception)

    def as_json(self) -> dict[str, Any]:
        """Plain values for run.json."""
        return {**asdict(self), "metrics": list(self.metrics)}

    def replaced(self, given: Mapping[str, Any]) -> Judging:
        """A copy with the given fields, those of its SampleSettings too."""
        sampling = {field.name for field in fields(SampleSettings)}
        samples = replace(self.samples, **{key: value for key, value in given.items() if key in sampling})
        return replace(self, samples=samples, **{key: value for key, value in given.items() if key not in sampling})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Judging:
        """The inverse of `as_json`."""
        return cls(**{**values, "metrics": tuple(values["metrics"]), "samples": SampleSettings(**values["samples"])})


def data_of(model: Model, data: str | None, data_dir: str | None, image_size: int | None = None) -> Dataset:
    """The training data to forget and to retain: as named, or as the model records; classes must agree.

    Raises DataError when neither says which, or when model and data know different classes.
    """
    recorded = model.info.get("recipe") or {}
    spec = data or recorded.get("data") or model.info.get("data")
    if spec is None:
        raise DataError(f"{model.source} does not record what it was trained on: give --data")
    same = data is None or data == recorded.get("data")
    directory = data_dir or (recorded.get("data_dir") if same else None)
    size = image_size or (recorded.get("image_size") if same else None)
    dataset = load_dataset(spec, "train", directory, size)
    if same and recorded.get("limit"):
        dataset = dataset.first(recorded["limit"])
        dataset.check()
    if model.class_names and model.class_names != dataset.class_names:
        raise DataError(
            f"{model.source} knows {len(model.class_names)} classes ({model.class_names[0]}, ...), {dataset.name} has "
            f"{len(dataset.class_names)} ({dataset.class_names[0]}, ...): give the data it was trained on"
        )
    channels, height, width = model.image_shape
    if dataset.images.shape[1:] != (height, width, channels):
        raise DataError(
            f"{model.source} takes images of {model.image_shape} (channels, height, width), {dataset.name} has "
            f"{dataset.images.shape[1:]} (height, width, channels): give --image-size or other data"
        )
    return dataset


def held_classifier(given: str | None, dataset: Dataset) -> Classifier | None:
    """The classifier that judges samples: the one given, the one that ships for this data, or none."""
    shipped = f"{dataset.name}-classifier"
    if given is None and shipped not in shipped_names():
        return None
    classifier = load_family(given or shipped, Classifier).to(device())
    if classifier.class_names != dataset.class_names:
        raise OptionError(
            f"--classifier {given} knows other classes than {dataset.name}: {classifier.class_names[0]}, ..."
        )
    return classifier


def evidence_for(
    model: Model, task: Task, dataset: Dataset, judging: Judging, folder: Path | None, original: Evidence | None = None
) -> Evidence:
    """Evidence whose samples lie in `folder`, or, for a model that does not change, in the user's cache."""
    if folder is None:
        settings = {**model.info.get("sampling", {}), **judging.samples.overrides()}
        key = fingerprint({"version": DRAWING, "model": model.hash, "seed": judging.sample_seed, **settings})
        folder = cache_folder() / "samples" / key[:32]
    return Evidence(
        model,
        task,
        dataset,
        folder,
        classifier=None if isinstance(model, Classifier) else held_classifier(judging.classifier, dataset),
        original=original,
        settings=judging.samples,
        seed=judging.sample_seed,
        inception=judging.inception,
    )


def measured(evidence: Evidence, metrics: Sequence[str]) -> dict[str, Any]:
    """`{"ua", "ra", "metrics": {name: score}, "not_measured": {name: reason}}`.

    Without named `metrics` those that apply are measured and the others listed with the reason; a named one that does
    not apply raises NotApplicableError.
    """
    scores: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    defaults = [name for name in DEFAULT_METRICS if not (name == "forget_share" and evidence.has_classes)]
    for name in metrics or defaults:
        try:
            scores[name] = registry.load("metrics", name)().measure(evidence).as_json()
        except NotApplicableError as error:
            if metrics and not (name == "paired_distance" and evidence.original is None):
                raise NotApplicableError(f"--metrics {name} cannot be measured: {error}") from error
            skipped[name] = str(error)
    headline = {name: scores[name]["value"] if name in scores else None for name in ("ua", "ra")}
    judge = evidence.held.hash if evidence.held is not None else None
    return {**headline, "metrics": scores, "not_measured": skipped, "judge_hash": judge}


def evaluate(
    given: str,
    *,
    judging: Mapping[str, Any] | None = None,
    forget: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
) -> dict[str, Any]:
    """Measure a run (against the original it was made from) or a model (by itself).

    A run brings its own task, data and judging; entries of `judging` (fields of Judging and of SampleSettings) replace
    its own. A bare model needs `forget` for UA.
    """
    began = time.perf_counter()
    document = _erase_run(given)
    if document is None:
        result = _evaluate_model(given, Judging().replaced(judging or {}), forget, data, data_dir, image_size)
    elif forget or data or data_dir or image_size:
        raise OptionError(f"{given} is a run, which brings its own --forget, --data, --data-dir and --image-size")
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
    dataset = data_of(original, settings["data"], settings["data_dir"], settings["image_size"])
    task = Task.of_classes(settings["forget"], dataset.class_names, original.erased_classes)
    before = evidence_for(original, task, dataset, judging, None)
    with tempfile.TemporaryDirectory() as scratch:
        # Samples made under the run's own settings are kept in it; others are drawn aside.
        own = judging.samples.overrides() == Judging.from_json(settings["judging"]).samples.overrides()
        own = own and judging.sample_seed == settings["judging"]["sample_seed"]
        place = folder / "samples" if own else Path(scratch)
        after = evidence_for(model, task, dataset, judging, place, before)
        result = measured(after, judging.metrics)
    trained = document.get("trained", {})
    return {
        "run": str(folder),
        "method": settings["method"],
        "forget": task.concept,
        "seconds": trained.get("seconds"),
        **result,
        "original": {"seconds": 0.0, **measured(before, judging.metrics)},
    }


def _evaluate_model(
    given: str, judging: Judging, forget: str | None, data: str | None, data_dir: str | None, image_size: int | None
) -> dict[str, Any]:
    judging.check()
    model = load_model(given).to(device())
    dataset = data_of(model, data, data_dir, image_size)
    gone = model.erased_classes
    task = Task.of_classes(forget, dataset.class_names, gone) if forget else Task(dataset.class_names, (), gone)
    result = measured(evidence_for(model, task, dataset, judging, None), judging.metrics)
    row = {"seconds": 0.0, **result}
    return {"model": resolve(given), "forget": task.concept, **row, "original": row}
