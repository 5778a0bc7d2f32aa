"""The interface of an exact method: how it divides the samples, what learns from a unit, how units are combined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.core.records import Record
from erasure.data import Batch, Dataset
from erasure.training.recipes import ClassifierRecipe


@dataclass(frozen=True)
class DataInfo(Record):
    """What a learner must know of the data set: its channels, image size in pixels, classes and name."""

    channels: int
    image_size: int
    class_names: tuple[str, ...]
    data: str

    @staticmethod
    def of(dataset: Dataset) -> DataInfo:
        """The facts of `dataset`."""
        _, size, _, channels = dataset.images.shape
        return DataInfo(channels, size, tuple(dataset.class_names), dataset.name)


class Learner(ABC):
    """A network that learns from the samples of one unit."""

    network: Any

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The mean loss of a batch; all random numbers come from `generator`."""

    @abstractmethod
    def scores(self, images: Tensor) -> Tensor:
        """The unit's scores of images (n, c, h, w) in [-1, 1], on the CPU: (n,) or (n, classes)."""


@dataclass(frozen=True)
class ExactMethod(ABC):
    """The settings that every exact method has. A unit is named by its kind and number, such as shard-3."""

    kind: ClassVar[str]
    crops: ClassVar[bool] = True

    slices: Annotated[int, "slices (ARCANE: blocks) of a unit, each with a saved state"] = 5
    epochs: Annotated[float, "passes over the data, in sum over the slices as many samples as that"] = 30.0
    batch_size: Annotated[int, "images a step"] = 64
    learning_rate: Annotated[float, "step size"] = 3e-3
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], "optimiser"] = "adamw"
    weight_decay: Annotated[float, "weight decay"] = 0.01
    momentum: Annotated[float, "momentum of sgd"] = 0.9
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for none"] = 1.0
    threads: Annotated[int, "threads of the training, which decide the last bits"] = 1

    def check(self, dataset: Dataset) -> None:
        """Raise OptionError for a value outside its range, or for images that no learner accepts."""
        if self.slices < 1 or self.threads < 1 or not 0 < self.epochs < float("inf"):
            raise OptionError("--slices and --threads must be at least 1, --epochs above 0")
        names = ("batch_size", "learning_rate", "optimizer", "weight_decay", "momentum", "clip_norm")
        ClassifierRecipe(**{name: getattr(self, name) for name in names}).check(dataset)

    @property
    def stage_epochs(self) -> float:
        """Epochs of one stage over its slices: 2 e / (R + 1), so that all stages see e n samples (Bourtoule et al.)."""
        return 2 * self.epochs / (self.slices + 1)

    def steps(self, num_samples: int) -> int:
        """Optimiser steps of a stage over `num_samples` samples; at least one."""
        return max(1, round(self.stage_epochs * num_samples / self.batch_size))

    def chosen(self, dataset: Dataset) -> np.ndarray:
        """The ids (n,) that are trained on, in order; by default all."""
        return np.arange(len(dataset))

    @abstractmethod
    def num_units(self, num_classes: int) -> int:
        """How many units there are."""

    @abstractmethod
    def unit_of(self, sample: int, label: int, seed: int) -> int:
        """The unit of a sample, which depends on the sample's id and label alone."""

    @abstractmethod
    def learner(self, info: DataInfo, seed: int) -> Learner:
        """An untrained learner with random weights from `seed`."""

    @abstractmethod
    def combined(self, units: Sequence[int], scores: Sequence[Tensor], num_classes: int) -> Tensor:
        """Scores (n, classes) from the scores of the numbered `units`; the highest one is the prediction."""
