"""Evidence: what the metrics look at. Samples, predictions and features are each made once, when first asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from erasure.data import Dataset
from erasure.errors import NotApplicableError
from erasure.images import to_float
from erasure.inception import inception_features, load_inception
from erasure.models import DiffusionModel, Model
from erasure.models.classifier import Classifier
from erasure.samples import UNCONDITIONAL, Samples, SampleSettings, draw
from erasure.task import Task

Part = Literal["forget", "retain"]
Kind = Literal["domain", "across", "together"]
IMAGES_A_ROW = 8


class PictureRow(NamedTuple):
    """A row of a picture: its name, images uint8 (n, h, w, c), and whether it was to be forgotten."""

    name: str
    images: np.ndarray
    forgotten: bool


class Evidence:
    """One model under one task.

    A generator is judged by a held `classifier` on the images it draws for each class; a classifier by its own answers
    on `dataset`. `original` is the evidence of the unchanged model, made from the same seeds.
    """

    default_metrics: tuple[str, ...] = ("ua", "ra", "forget_share", "fd_classifier", "paired_distance")

    def __init__(
        self,
        model: Model,
        task: Task,
        dataset: Dataset,
        folder: Path,
        *,
        classifier: Classifier | None = None,
        original: Evidence | None = None,
        settings: SampleSettings | None = None,
        seed: int = 0,
        inception: str | None = None,
    ) -> None:
        self.model, self.task, self.dataset, self.folder = model, task, dataset, folder
        self.held, self.original = classifier, original
        self.settings, self.seed, self.inception_path = settings or SampleSettings(), seed, inception

    @property
    def judge(self) -> Classifier:
        """Who says which class an image shows."""
        if isinstance(self.model, Classifier):
            return self.model
        if self.held is None:
            raise NotApplicableError(
                f"no classifier of {self.dataset.name} is here to judge samples: give --classifier, or train one with "
                f"`erasure train classifier --data {self.dataset.name}`"
            )
        return self.held

    @property
    def judge_hash(self) -> str | None:
        """Hash of the classifier that judges samples, None without one."""
        return None if self.held is None else self.held.hash

    def correct_in(self, kind: Kind) -> np.ndarray:
        """What prompts show; classes show nothing but themselves."""
        raise NotApplicableError("it needs prompts that say what they show: a text-to-image model and a concept")

    def clip_scores(self, part: Part) -> tuple[np.ndarray, str]:
        """What prompts say; classes say nothing."""
        raise NotApplicableError("it needs prompts: a text-to-image model and a concept")

    @cached_property
    def samples(self) -> Samples:
        """The images judged: drawn by a generator, or those of the data set for a classifier."""
        if isinstance(self.model, DiffusionModel):
            return draw(self.model, range(len(self.task.class_names)), self.settings, self.seed, self.folder)
        return Samples(self.dataset.images, self.dataset.labels)

    @cached_property
    def _described(self) -> tuple[np.ndarray, np.ndarray]:
        logits, features = self.judge.describe(to_float(self.samples.images))
        return logits.argmax(1).numpy(), features.double().numpy()

    @property
    def predicted(self) -> np.ndarray:
        """The class the judge sees in each image, (n,)."""
        return self._described[0]

    def chosen(self, part: Part) -> np.ndarray:
        """Which images belong to the forgotten or the retained classes, (n,) booleans."""
        self._need_classes()
        if part == "forget" and not self.task.forget:
            raise NotApplicableError("no class is named as forgotten: give --forget")
        return np.isin(self.samples.labels, self.task.forget if part == "forget" else self.task.retain)

    def correct(self, part: Part) -> np.ndarray:
        """Whether the judge sees the class that was asked for, one boolean an image of the part."""
        chosen = self.chosen(part)
        return self.predicted[chosen] == self.samples.labels[chosen]

    def features(self, part: Part) -> np.ndarray:
        """The judge's pooled features of the drawn images, (n, d)."""
        self._need_generator()
        return self._described[1][self.chosen(part) if self.has_classes else slice(None)]

    def reference(self, part: Part) -> Dataset:
        """Real images of the same classes."""
        return self.dataset.of_classes(self.task.forget if part == "forget" else self.task.retain)

    def reference_features(self, part: Part) -> np.ndarray:
        """The judge's pooled features of real images, (m, d)."""
        self._need_generator()
        return self.judge.describe(to_float(self.reference(part).images))[1].double().numpy()

    @cached_property
    def inception_pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Inception features of drawn (n, 2048) and of real (m, 2048) images of the retained classes."""
        self._need_generator()
        network = load_inception(self.inception_path).to(self.model.device)
        drawn = self.samples.images[self.chosen("retain") if self.has_classes else slice(None)]
        real = self.reference("retain").images
        return inception_features(network, to_float(drawn)), inception_features(network, to_float(real))

    def picture(self) -> list[PictureRow]:
        """A row a class, forgotten ones first."""
        order = [*self.task.forget, *self.task.retain] if self.has_classes else [UNCONDITIONAL]
        return [
            PictureRow(
                self.task.class_names[label] if label >= 0 else "samples",
                self.samples.images[self.samples.labels == label][:IMAGES_A_ROW],
                label in self.task.forget,
            )
            for label in order
        ]

    @property
    def has_classes(self) -> bool:
        """Whether each image was asked for by its class; not so for unconditional generators."""
        return not isinstance(self.model, DiffusionModel) or self.model.conditional

    def _need_generator(self) -> None:
        if not isinstance(self.model, DiffusionModel):
            raise NotApplicableError("a classifier draws no images")

    def _need_classes(self) -> None:
        if not self.has_classes:
            raise NotApplicableError("an unconditional model is asked for no class: its measure is forget_share")


def probe(
    model: DiffusionModel, task: Task, judge: Classifier, seeds: dict[int, list[int]], steps: int
) -> dict[str, float]:
    """A quick look during training: UA and RA in percent over few samples, `seeds` by class, few denoising steps."""
    labels = torch.tensor([label for label, own in seeds.items() for _ in own])
    images = model.generate(labels, [seed for own in seeds.values() for seed in own], num_inference_steps=steps)
    correct = judge.describe(images)[0].argmax(1) == labels
    forgotten = torch.isin(labels, torch.tensor(task.forget))
    return {
        "ua": 100 - 100 * float(correct[forgotten].float().mean()),
        "ra": 100 * float(correct[~forgotten].float().mean()),
    }
