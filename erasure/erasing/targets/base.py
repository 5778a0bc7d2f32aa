"""ForgetTarget: what is erased, with its data and outputs; and TargetSpec: how it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure.core.errors import DataError, ModelError, OptionError
from erasure.core.files import read_json
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.erasing.record import EraseSettings
from erasure.evaluation.outputs import ModelOutputs
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import Model, shipped_folder, shipped_names
from erasure.models.info import ModelInfo
from erasure.prompts.concept import Concept

Probe = Callable[[Model], Mapping[str, float]]
HASHED = {"data_hash": "the data", "images_hash": "the images", "parts_hash": "other parts of the model"}
PROBED = 32  # forget images of a probe during training, and as many retain images


@dataclass(frozen=True)
class TargetSpec:
    """What was asked to be forgotten: classes or samples of the data, or, for text-to-image models, words or a concept.

    `training_images` are those fields of TrainingImageOptions that were asked for; the rest follow the model's card.
    """

    forget: str | None = None
    data: str | None = None
    data_dir: str | None = None
    image_size: int | None = None
    concept: str | Concept | None = None
    anchor: str | None = None
    retain: str | None = None
    training_images: Mapping[str, Any] = field(default_factory=dict)


class ForgetTarget(ABC):
    """A task, the samples that a method trains on, and the outputs that metrics read."""

    task: Task

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain values for run.json, from which `recorded_target` makes the same target."""

    @property
    @abstractmethod
    def dataset(self) -> Dataset:
        """The samples that a method trains on."""

    @property
    def forget_data(self) -> Dataset:
        """The samples to be forgotten."""
        return self.dataset.of_classes(self.task.forget)

    @property
    def retain_data(self) -> Dataset:
        """The samples to be kept."""
        return self.dataset.of_classes(self.task.retain)

    def need_forget(self) -> None:
        """Raise OptionError when nothing is named that is to be forgotten."""
        if not self.task.forget and not self.task.samples:
            raise OptionError("--forget names no class: say what to forget, such as --forget 3")

    def check_unchanged(self, settings: EraseSettings, of: str, *, images: bool = True) -> None:
        """Raise DataError when the data (with `images` the training images too) is not that of the earlier run."""
        own, hashed = self.settings, HASHED if images else {"data_hash": HASHED["data_hash"]}
        for key, what in hashed.items():
            if own.get(key) != settings.get(key):
                raise DataError(
                    f"{what} of {of} changed since: restore what was added, removed or edited, or erase anew"
                )

    @abstractmethod
    def prepare(self, model: Model) -> None:
        """Make a copy of the model ready for the task."""

    @abstractmethod
    def outputs(
        self, model: Model, evaluation: EvaluationConfig, folder: Path | None, original: ModelOutputs | None = None
    ) -> ModelOutputs:
        """What metrics read; images lie in `folder`, or, for a model that does not change, in the user's cache."""

    @abstractmethod
    def probe(self, model: Model, evaluation: EvaluationConfig) -> Probe:
        """Measure UA and RA in percent over few samples during training."""

    @abstractmethod
    def check_labeler(self, evaluation: EvaluationConfig) -> None:
        """Open the classifier that labels images, so that its errors come before anything is written."""

    @abstractmethod
    def mark(self, info: ModelInfo) -> None:
        """Write into a cleaned model's `info` what was erased from it."""


def shipped_classifier(data: str | None) -> str | None:
    """The name of the classifier that ships for a data set, None when there is none."""
    for name in shipped_names():
        if data is not None and name.endswith("-classifier"):
            card = shipped_folder() / name / "erasure.json"
            if card.is_file() and read_json(card, ModelError).get("data") == data:
                return name
    return None
