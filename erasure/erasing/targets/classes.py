"""ClassTarget: classes of the data set that a model was trained on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erasure.core.distributed import device
from erasure.core.errors import DataError, NotApplicableError, OptionError
from erasure.core.rng import derive_seed
from erasure.core.run_dir import cache_folder, fingerprint
from erasure.data import Dataset, load_dataset, placed
from erasure.data.forget_sets import forget_ids, mislabelled
from erasure.data.task import Task
from erasure.erasing.targets.base import PROBED, ForgetTarget, Probe, TargetSpec, shipped_classifier
from erasure.evaluation.outputs import ClassifierOutputs, GeneratorOutputs, ModelOutputs, probe
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import DiffusionModel, Model, load_family
from erasure.models.classifier import Classifier
from erasure.models.guidance import KEY as STEERING
from erasure.models.info import ModelInfo
from erasure.sampling.draw import DRAWING


class ClassTarget(ForgetTarget):
    """Classes of the data set that a model was trained on."""

    def __init__(self, model: Model, spec: TargetSpec) -> None:
        for flag in ("concept", "anchor", "retain"):
            if getattr(spec, flag):
                raise NotApplicableError(
                    f"--{flag} is for text-to-image models: {model.source} knows classes, so give --forget with classes"
                )
        self.source = DataSource.of(model, spec)
        self._dataset = data_of(model, self.source)
        names, erased = self._dataset.class_names, model.erased_classes
        self.task = Task.of_classes(spec.forget, names, erased) if spec.forget is not None else Task(names, (), erased)
        self._spec = spec
        self._classifiers: dict[str | None, Classifier | None] = {}
        self._erased = erased_before(model, self.source, self._dataset)
        self._retrained: dict[str, Classifier] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """The classes, and where their data is."""
        spec = self._spec
        return {
            "forget": spec.forget,
            "data": placed(spec.data),
            "data_dir": str(Path(spec.data_dir).resolve()) if spec.data_dir else None,
            "image_size": spec.image_size,
            "data_hash": self._dataset.hash,
        }

    @property
    def dataset(self) -> Dataset:
        """The training split, with the labels that the model was trained with."""
        return self._dataset

    @cached_property
    def test_data(self) -> Dataset:
        """The test split of the same data, with its own labels."""
        source = self.source
        return load_dataset(source.spec, "test", source.directory, source.image_size)

    @property
    def forgotten(self) -> np.ndarray:
        """Which training samples are to be forgotten, (n,) booleans."""
        return np.isin(self._dataset.labels, self.task.forget)

    @property
    def kept(self) -> np.ndarray:
        """Which are to be retained, (n,) booleans: those left that were not erased before."""
        return np.isin(self._dataset.labels, self.task.retain) & ~self.forgotten & ~self._erased

    @property
    def forget_data(self) -> Dataset:
        """The samples to be forgotten."""
        return self._dataset.at(self.forgotten)

    @property
    def retain_data(self) -> Dataset:
        """The samples to be kept."""
        return self._dataset.at(self.kept)

    def prepare(self, model: Model) -> None:
        """Nothing to do: labels mean the same to every copy."""

    def outputs(
        self, model: Model, evaluation: EvaluationConfig, folder: Path | None, original: ModelOutputs | None = None
    ) -> ModelOutputs:
        """Images of every class, or a classifier's predictions."""
        dataset, ids = self._dataset, None
        if self.task.samples or self._erased.any():  # what was erased before is on neither side
            dataset = dataset.at(self.forgotten | self.kept)
            ids = np.flatnonzero(self.forgotten[self.forgotten | self.kept]) if self.task.samples else None
        if isinstance(model, Classifier):
            shared: dict[str, Any] = {"forget_ids": ids, "test": lambda: self.test_data}
            retrained = self._retrained_for(evaluation)
            theirs = retrained and ClassifierOutputs(retrained, self.task, dataset, evaluation, **shared)
            shared |= {"original": original, "retrained": theirs}
            return ClassifierOutputs(model, self.task, dataset, evaluation, **shared)
        assert isinstance(model, DiffusionModel)
        assert original is None or isinstance(original, GeneratorOutputs)
        if folder is None:
            settings = {**model.info.get("sampling", {}), **evaluation.samples.overrides()}
            about = {"version": DRAWING, "model": model.hash, "seed": evaluation.sample_seed, **settings}
            key = fingerprint(about | ({STEERING: model.info[STEERING]} if STEERING in model.info else {}))
            folder = cache_folder() / "samples" / key[:32]
        classifier = self.classifier(evaluation)
        return GeneratorOutputs(model, self.task, dataset, folder, evaluation, classifier=classifier, original=original)

    def _retrained_for(self, evaluation: EvaluationConfig) -> Classifier | None:
        """The classifier that `--retrained` names, loaded once; raises OptionError when it has other classes."""
        given = evaluation.retrained
        if given is None:
            return None
        if given not in self._retrained:
            self._retrained[given] = load_family(given, Classifier).to(device())
        if self._retrained[given].class_names != self._dataset.class_names:
            raise OptionError(f"--retrained {given} has other classes than {self._dataset.name}")
        return self._retrained[given]

    def classifier(self, evaluation: EvaluationConfig) -> Classifier | None:
        """The classifier that labels generated images, loaded once: the one given, or the one that ships."""
        if evaluation.classifier not in self._classifiers:
            self._classifiers[evaluation.classifier] = opened_classifier(evaluation.classifier, self._dataset)
        return self._classifiers[evaluation.classifier]

    def probe(self, model: Model, evaluation: EvaluationConfig) -> Probe:
        """32 forget and 32 retain images in 20 denoising steps."""
        labeler = self.classifier(evaluation)
        if labeler is None or not isinstance(model, DiffusionModel) or not model.conditional:
            raise NotApplicableError("--probe-every needs a class-conditional generator and a classifier of its data")
        seeds = {
            label: [derive_seed(evaluation.sample_seed, "probe", label, i) for i in range(max(1, PROBED // len(group)))]
            for group in (self.task.forget, self.task.retain)
            for label in group
        }
        return lambda moving: probe(moving, self.task, labeler, seeds, steps=20)  # type: ignore[arg-type]

    def check_labeler(self, evaluation: EvaluationConfig) -> None:
        """The classifier knows the data's classes."""
        self.classifier(evaluation)

    def mark(self, info: ModelInfo) -> None:
        """A later erasure does not retain these classes."""
        info["erased_classes"] = sorted({*info.get("erased_classes", ()), *self.task.forget})


class DataSource(NamedTuple):
    """Where the data of a model lies, and whether it is that which the model records as its own."""

    spec: str
    directory: str | None
    image_size: int | None
    same: bool

    @classmethod
    def of(cls, model: Model, spec: TargetSpec) -> DataSource:
        """The data as asked for, or as the model records it; raises DataError when neither says which."""
        noted = model.info.get("recipe") or {}
        data = spec.data or noted.get("data") or model.info.get("data")
        if data is None:
            raise DataError(f"{model.source} does not record what it was trained on: give --data")
        same = spec.data is None or spec.data == noted.get("data")
        directory = spec.data_dir or (noted.get("data_dir") if same else None)
        return cls(data, directory, spec.image_size or (noted.get("image_size") if same else None), same)


def data_of(model: Model, source: DataSource) -> Dataset:
    """The training data to forget and to retain, as the model was shown it: so many images, these labels wrong.

    Raises DataError when model and data know different classes, or images of another shape.
    """
    dataset = load_dataset(source.spec, "train", source.directory, source.image_size)
    noted = (model.info.get("recipe") or {}) if source.same else {}
    if noted.get("limit"):
        dataset = dataset.first(noted["limit"])
        dataset.check()
    if noted.get("mislabel"):
        dataset, _ = mislabelled(dataset, noted["mislabel"], noted["seed"])
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


def erased_before(model: Model, source: DataSource, dataset: Dataset) -> np.ndarray:
    """Which samples single-sample erasures of this model name, (n,) booleans; they are not retained again."""
    erased = np.zeros(len(dataset), dtype=bool)
    recipe = model.info.get("recipe") or {}
    for spec in model.info.get("erased_samples", ()) if source.same else ():
        erased[forget_ids(spec, dataset, recipe.get("seed", 0))] = True
    return erased


def opened_classifier(given: str | None, dataset: Dataset) -> Classifier | None:
    """The classifier of this data's classes: the one given, the one that ships, or none.

    Raises OptionError when it knows other classes.
    """
    chosen = given or shipped_classifier(dataset.name)
    if chosen is None:
        return None
    classifier = load_family(chosen, Classifier).to(device())
    if classifier.class_names != dataset.class_names:
        raise OptionError(
            f"--classifier {given} knows other classes than {dataset.name}: {classifier.class_names[0]}, ..."
        )
    return classifier
