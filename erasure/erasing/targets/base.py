"""What every subject gives, and what can be asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure.core.errors import ModelError, OptionError
from erasure.core.files import read_json
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.evaluation.outputs import ModelOutputs
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import Model, shipped_folder, shipped_names
from erasure.models.info import ModelInfo

Probe = Callable[[Model], Mapping[str, float]]
PROBED = 32  # forget images of a look during training, and as many retain images


@dataclass(frozen=True)
class TargetSpec:
    """What was asked to be forgotten: classes or samples of the data, or, for text-to-image models, words or a concept.

    `training_images` are those fields of TrainingImageOptions that were asked for; the rest follow the model's card.
    """

    forget: str | None = None
    data: str | None = None
    data_dir: str | None = None
    image_size: int | None = None
    concept: str | None = None
    anchor: str | None = None
    retain: str | None = None
    training_images: Mapping[str, Any] = field(default_factory=dict)


class ForgetTarget(ABC):
    """A task with its samples and its evidence."""

    task: Task

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain values for run.json, from which `recorded` makes the same subject."""

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

    @abstractmethod
    def prepare(self, model: Model) -> None:
        """Make another copy of the model ready for the task."""

    @abstractmethod
    def outputs(
        self, model: Model, evaluation: EvaluationConfig, folder: Path | None, original: ModelOutputs | None = None
    ) -> ModelOutputs:
        """What metrics read; images lie in `folder`, or, for a model that does not change, in the user's cache."""

    @abstractmethod
    def probe(self, model: Model, evaluation: EvaluationConfig) -> Probe:
        """What is looked at during training: UA and RA over few samples, in percent."""

    @abstractmethod
    def check_labeler(self, evaluation: EvaluationConfig) -> None:
        """Raise what is wrong with the judge before anything is written."""

    @abstractmethod
    def mark(self, info: ModelInfo) -> None:
        """Write into a cleaned model's `info` what is gone from it."""


def shipped_classifier(data: str | None) -> str | None:
    """The name of the classifier that ships for a data set, None when there is none."""
    for name in shipped_names():
        if data is not None and name.endswith("-classifier"):
            card = shipped_folder() / name / "erasure.json"
            if card.is_file() and read_json(card, ModelError).get("data") == data:
                return name
    return None
