"""Outputs of a model: what metrics are computed from, for generators and for classifiers.

Images, predictions and features are each made once, when a metric first asks for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from erasure.core.errors import NotApplicableError
from erasure.data import Dataset
from erasure.data.images import to_float
from erasure.data.task import Task
from erasure.evaluation.distances import need_two
from erasure.evaluation.features.spaces import Space, cached_features, embedding
from erasure.evaluation.predictions import Predictions, finite, need_one_label, on_test_split
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import DiffusionModel
from erasure.models.classifier import Classifier
from erasure.sampling.draw import UNCONDITIONAL, LabeledImages, draw

Part = Literal["forget", "retain"]
Split = Literal["forget", "retain", "test"]
Kind = Literal["domain", "across", "together"]
Pair = tuple[np.ndarray, np.ndarray]
OF_CLASSIFIERS = ("ua", "ra", "ta", "mia", "loss_auc")
IMAGES_A_ROW = 8


class PictureRow(NamedTuple):
    """A row of a picture: its name, images uint8 (n, h, w, c), and whether it was to be forgotten."""

    name: str
    images: np.ndarray
    forgotten: bool


class ModelOutputs(ABC):
    """What a metric may ask about one model under one task.

    A kind of model overrides what it can give; everything else raises NotApplicableError with the reason.
    `original` are the outputs of the unchanged model from the same seeds, `retrained` those of a model that has never
    seen the forget set.
    """

    default_metrics: tuple[str, ...]
    compared_with = "real"  # which images stand on the other side of a distance
    has_classes = True  # whether each image was asked for by a class or prompt

    def __init__(self, task: Task, config: EvaluationConfig, original: ModelOutputs | None = None) -> None:
        self.task, self.config, self.original = task, config, original
        self.retrained: ModelOutputs | None = None

    @property
    def labeler_hash(self) -> str | None:
        """Hash of the classifier that labels generated images, None without one."""
        return None

    @property
    @abstractmethod
    def samples(self) -> LabeledImages:
        """The images, with the class that each was asked for or belongs to."""

    @property
    @abstractmethod
    def predicted(self) -> np.ndarray:
        """The class predicted for each image, (n,)."""

    @abstractmethod
    def chosen(self, part: Part) -> np.ndarray:
        """Which images belong to the forget or the retain part, (n,) booleans."""

    def correct(self, part: Part) -> np.ndarray:
        """Whether the predicted class is the right one, one boolean for each image of the part."""
        return (self.predicted == self.samples.labels)[self.chosen(part)]

    def predictions(self, part: Split) -> Predictions:
        """A classifier's own predictions on a part."""
        raise NotApplicableError("it reads a classifier's own predictions: a generator has none")

    def features(self, part: Part) -> np.ndarray:
        """The labeler's pooled features of generated images, (n, d)."""
        raise _no_images()

    def reference_features(self, part: Part) -> np.ndarray:
        """The labeler's pooled features of the images to compare with, (m, d)."""
        raise _no_images()

    def paired_features(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Features of retain images and of the original's from the same seeds, (n, d) each, and their space."""
        raise _no_images()

    def pair(self, space: Space) -> Pair:
        """Features of retain images (n, d), and of those they are compared with (m, d), in a named space."""
        raise _no_images()

    def counted(self, reference: np.ndarray) -> dict[str, int]:
        """How many images stand on the other side, and which: `n_real`."""
        return {f"n_{self.compared_with}": len(reference)}

    def correct_in(self, kind: Kind) -> np.ndarray:
        """Whether what retain prompts name is recognised, in the erased domain, across others, or all of it at once."""
        raise NotApplicableError("it needs prompts that say what they show: a text-to-image model and a concept")

    def clip_scores(self, part: Part) -> tuple[np.ndarray, str]:
        """CLIP's score of each image against its prompt, (n,), and the name of the CLIP model."""
        raise NotApplicableError("it needs prompts: a text-to-image model and a concept")


def _no_images() -> NotApplicableError:
    return NotApplicableError("a classifier generates no images")


class ClassifierOutputs(ModelOutputs):
    """A classifier's own predictions on `dataset`.

    The samples at positions `forget_ids` are the forget part (None: those of the task's classes). `test` loads the test
    split (None: that of the data which the model records).
    """

    default_metrics: tuple[str, ...] = OF_CLASSIFIERS

    def __init__(
        self,
        model: Classifier,
        task: Task,
        dataset: Dataset,
        config: EvaluationConfig,
        *,
        forget_ids: np.ndarray | None = None,
        test: Callable[[], Dataset] | None = None,
        original: ModelOutputs | None = None,
        retrained: ModelOutputs | None = None,
    ) -> None:
        super().__init__(task, config, original)
        self.retrained = retrained
        if retrained is not None:
            self.default_metrics = (*self.default_metrics, "avg_gap")
        self.model, self.dataset, self.forget_ids, self._test = model, dataset, forget_ids, test

    @cached_property
    def samples(self) -> LabeledImages:
        """The images of the data set."""
        return LabeledImages(self.dataset.images, self.dataset.labels)

    @cached_property
    def _logits(self) -> np.ndarray:
        return self.model.describe(to_float(self.samples.images))[0].double().numpy()

    @property
    def predicted(self) -> np.ndarray:
        """The class of the largest logit, (n,)."""
        return self._logits.argmax(1)

    def chosen(self, part: Part) -> np.ndarray:
        """Which samples belong to the part, (n,) booleans; what was erased before belongs to neither."""
        if self.forget_ids is None:
            return _of_classes(self.task, self.samples.labels, part)
        labels = self.samples.labels
        forget = np.isin(range(len(labels)), self.forget_ids)
        return forget if part == "forget" else ~forget & ~np.isin(labels, self.task.already_erased)

    def predictions(self, part: Split) -> Predictions:
        """Logits and labels of a part; raises NotApplicableError for a classifier of several aspects."""
        need_one_label(self.model)
        if part == "test":
            return self._on_test_split
        return Predictions(finite(self._logits), self.samples.labels).of(self.chosen(part))

    @cached_property
    def _on_test_split(self) -> Predictions:
        """Those on the test split, without the classes that were forgotten as a whole."""
        forgotten = {*self.task.already_erased, *(self.task.forget if self.forget_ids is None else ())}
        return on_test_split(self.model, self._test, self.dataset.class_names, forgotten)


class GeneratorOutputs(ModelOutputs):
    """Images that a diffusion model generates for each class into `folder`, labeled by a frozen `classifier`.

    `dataset` are real images of the same classes. `folder` must belong to this model and these sampling settings.
    """

    default_metrics: tuple[str, ...] = ("ua", "ra", "forget_share", "fd_classifier", "paired_distance")

    def __init__(
        self,
        model: DiffusionModel,
        task: Task,
        dataset: Dataset,
        folder: Path,
        config: EvaluationConfig,
        *,
        classifier: Classifier | None = None,
        original: GeneratorOutputs | None = None,
    ) -> None:
        if config.retrained is not None:
            raise NotApplicableError(f"--retrained is for classifiers: {model.source} generates images")
        model.check_labels(task.class_names)
        super().__init__(task, config, original)
        self.original: GeneratorOutputs | None = original
        self.model, self.dataset, self.folder, self.classifier = model, dataset, folder, classifier
        self.has_classes = model.conditional
        if self.has_classes:
            self.default_metrics = tuple(name for name in self.default_metrics if name != "forget_share")
        self._pairs: dict[Space, Pair] = {}

    @property
    def labeler(self) -> Classifier:
        """The classifier that labels the images; raises NotApplicableError without one."""
        if self.classifier is None:
            raise NotApplicableError(
                f"no classifier of {self.dataset.name} was found to label the images: give --classifier, or train one "
                f"with `erasure train classifier --data {self.dataset.name}`"
            )
        return self.classifier

    @property
    def labeler_hash(self) -> str | None:
        """Hash of the classifier that labels the images, None without one."""
        return None if self.classifier is None else self.classifier.hash

    @cached_property
    def samples(self) -> LabeledImages:
        """The images of every class, or so many at all of an unconditional model."""
        classes = range(len(self.task.class_names))
        return draw(self.model, classes, self.config.samples, self.config.sample_seed, self.folder)

    @cached_property
    def _described(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted classes (n,) and pooled features (n, d) of the images."""
        logits, features = self.labeler.describe(to_float(self.samples.images))
        return logits.double().numpy().argmax(1), features.double().numpy()

    @property
    def predicted(self) -> np.ndarray:
        """The class that the classifier sees in each image, (n,)."""
        return self._described[0]

    def chosen(self, part: Part) -> np.ndarray:
        """Which images were asked for as a class of the part, (n,) booleans."""
        if not self.has_classes:
            raise NotApplicableError("an unconditional model generates no named class: measure forget_share instead")
        return _of_classes(self.task, self.samples.labels, part)

    def features(self, part: Part) -> np.ndarray:
        """The classifier's pooled features of the images, (n, d)."""
        return self._described[1][self._shown(part)]

    def reference(self, part: Part) -> Dataset:
        """Real images of the part's classes."""
        return self.dataset.of_classes(self.task.forget if part == "forget" else self.task.retain)

    def reference_features(self, part: Part) -> np.ndarray:
        """The classifier's pooled features of real images, (m, d)."""
        return self.labeler.describe(to_float(self.reference(part).images))[1].double().numpy()

    def paired_features(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Features of retain images and of the original's from the same seeds, (n, d) each, and their space."""
        if self.original is None:
            raise NotApplicableError("paired_distance compares a cleaned model with its original: there is none here")
        return self.features("retain"), self.original.features("retain"), "classifier"

    def pair(self, space: Space) -> Pair:
        """Features of retain images (n, d) and of real ones (m, d) in a named space.

        Raises NotApplicableError without its network, or below two images a side.
        """
        if space not in self._pairs:
            embed, network_hash = embedding(space, getattr(self.config, space), self.model.device)
            real, generated = self.reference("retain"), self.samples.images[self._shown("retain")]
            need_two(len(generated), len(real))
            self._pairs[space] = embed(generated), cached_features(real, f"{space} {network_hash()}", embed)
        return self._pairs[space]

    def _shown(self, part: Part) -> np.ndarray | slice:
        """The part's images; all images of an unconditional model, which has no parts."""
        return self.chosen(part) if self.has_classes else slice(None)

    def picture(self) -> list[PictureRow]:
        """A row of images for each class, forgotten ones first."""
        order = [*self.task.forget, *self.task.retain] if self.has_classes else [UNCONDITIONAL]
        return [
            PictureRow(
                self.task.class_names[label] if label >= 0 else "samples",
                self.samples.images[self.samples.labels == label][:IMAGES_A_ROW],
                label in self.task.forget,
            )
            for label in order
        ]


def _of_classes(task: Task, labels: np.ndarray, part: Part) -> np.ndarray:
    """Which `labels` (n,) are of the part's classes, (n,) booleans."""
    if part == "forget" and not task.forget:
        raise NotApplicableError("no class is named as forgotten: give --forget")
    return np.isin(labels, task.forget if part == "forget" else task.retain)


def probe(
    model: DiffusionModel, task: Task, classifier: Classifier, seeds: dict[int, list[int]], steps: int
) -> dict[str, float]:
    """UA and RA in percent during training, from few images (`seeds` by class) in few denoising steps."""
    labels = torch.tensor([label for label, own in seeds.items() for _ in own])
    images = model.generate(labels, [seed for own in seeds.values() for seed in own], num_inference_steps=steps)
    correct = classifier.describe(images)[0].argmax(1) == labels
    forget = torch.isin(labels, torch.tensor(task.forget))
    return {
        "ua": 100 - 100 * float(correct[forget].float().mean()),
        "ra": 100 * float(correct[~forget].float().mean()),
    }
