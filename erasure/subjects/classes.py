"""classes: forget classes of the data set that a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erasure.data import Dataset, load_dataset, placed
from erasure.errors import DataError, NotApplicableError, OptionError
from erasure.evidence import Evidence, probe
from erasure.judging import Judging
from erasure.models import DiffusionModel, Model, load_family
from erasure.models.classifier import Classifier
from erasure.processes import device
from erasure.run import cache_folder, fingerprint
from erasure.samples import DRAWING
from erasure.seeds import derive
from erasure.subjects._base import PROBED, Look, Subject, Wanted, shipped_classifier
from erasure.task import Task


class Classes(Subject):
    """Classes of the data set that a model was trained on."""

    def __init__(self, model: Model, wanted: Wanted) -> None:
        for flag in ("concept", "anchor", "retain"):
            if getattr(wanted, flag):
                raise NotApplicableError(
                    f"--{flag} is for text-to-image models: {model.source} knows classes, so give --forget with classes"
                )
        self._dataset = data_of(model, wanted.data, wanted.data_dir, wanted.image_size)
        names, gone = self._dataset.class_names, model.erased_classes
        self.task = Task.of_classes(wanted.forget, names, gone) if wanted.forget is not None else Task(names, (), gone)
        self._wanted = wanted

    @property
    def settings(self) -> dict[str, Any]:
        """The classes, and where their data is."""
        wanted = self._wanted
        return {
            "forget": wanted.forget,
            "data": placed(wanted.data),
            "data_dir": str(Path(wanted.data_dir).resolve()) if wanted.data_dir else None,
            "image_size": wanted.image_size,
            "data_hash": self._dataset.hash,
        }

    @property
    def dataset(self) -> Dataset:
        """The training split."""
        return self._dataset

    def prepare(self, model: Model) -> None:
        """Nothing to do: labels mean the same to every copy."""

    def evidence(
        self, model: Model, judging: Judging, folder: Path | None, original: Evidence | None = None
    ) -> Evidence:
        """Samples of every class, or a classifier's answers."""
        if folder is None:
            settings = {**model.info.get("sampling", {}), **judging.samples.overrides()}
            key = fingerprint({"version": DRAWING, "model": model.hash, "seed": judging.sample_seed, **settings})
            folder = cache_folder() / "samples" / key[:32]
        return Evidence(
            model,
            self.task,
            self._dataset,
            folder,
            classifier=None if isinstance(model, Classifier) else held_classifier(judging.classifier, self._dataset),
            original=original,
            settings=judging.samples,
            seed=judging.sample_seed,
            inception=judging.inception,
        )

    def look(self, model: Model, judging: Judging) -> Look:
        """32 forget and 32 retain images in 20 denoising steps."""
        judge = held_classifier(judging.classifier, self._dataset)
        if judge is None or not isinstance(model, DiffusionModel) or not model.conditional:
            raise NotApplicableError("--probe-every needs a class-conditional generator and a classifier of its data")
        seeds = {
            label: [derive(judging.sample_seed, "probe", label, i) for i in range(max(1, PROBED // len(group)))]
            for group in (self.task.forget, self.task.retain)
            for label in group
        }
        return lambda moving: probe(moving, self.task, judge, seeds, steps=20)  # type: ignore[arg-type]

    def check_judge(self, judging: Judging) -> None:
        """The classifier knows the data's classes."""
        held_classifier(judging.classifier, self._dataset)

    def mark(self, info: dict[str, Any]) -> None:
        """A later erasure does not retain these classes."""
        info["erased_classes"] = sorted({*info.get("erased_classes", ()), *self.task.forget})


def data_of(model: Model, data: str | None, data_dir: str | None, image_size: int | None = None) -> Dataset:
    """The training data to forget and to retain: as named, or as the model records; classes must agree.

    Raises DataError when neither says which, or when model and data know different classes.
    """
    noted = model.info.get("recipe") or {}
    spec = data or noted.get("data") or model.info.get("data")
    if spec is None:
        raise DataError(f"{model.source} does not record what it was trained on: give --data")
    same = data is None or data == noted.get("data")
    directory = data_dir or (noted.get("data_dir") if same else None)
    size = image_size or (noted.get("image_size") if same else None)
    dataset = load_dataset(spec, "train", directory, size)
    if same and noted.get("limit"):
        dataset = dataset.first(noted["limit"])
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
    chosen = given or shipped_classifier(dataset.name)
    if chosen is None:
        return None
    classifier = load_family(chosen, Classifier).to(device())
    if classifier.class_names != dataset.class_names:
        raise OptionError(
            f"--classifier {given} knows other classes than {dataset.name}: {classifier.class_names[0]}, ..."
        )
    return classifier
