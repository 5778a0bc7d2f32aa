"""Evidence: what the metrics look at. Samples, predictions and features are each made once, when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from erasure.core.errors import NotApplicableError
from erasure.core.run_dir import cache_folder, fingerprint, is_main
from erasure.data import Dataset
from erasure.data.images import to_float
from erasure.data.task import Task
from erasure.evaluation.distances import need_two
from erasure.evaluation.features.clip import BATCH_SIZE, clip_image_features, load_clip
from erasure.evaluation.features.dinov2 import dinov2_features, load_dinov2
from erasure.evaluation.features.inception import inception_features, inception_file, load_inception
from erasure.evaluation.predictions import Predictions, finite, need_one_label, tested
from erasure.formats.safetensors_io import hash_tensors, read_tensors, write_tensors
from erasure.models import DiffusionModel, Model
from erasure.models.classifier import Classifier
from erasure.sampling.draw import UNCONDITIONAL, LabeledImages, SamplingOptions, draw

Part = Literal["forget", "retain"]
Split = Literal["forget", "retain", "test"]
Kind = Literal["domain", "across", "together"]
Space = Literal["inception", "clip", "dinov2"]
Pair = tuple[np.ndarray, np.ndarray]
Embedder = Callable[[np.ndarray], np.ndarray]
MODELS = {"clip": "CLIP", "dinov2": "DINOv2"}
OF_CLASSIFIERS = ("ua", "ra", "ta", "mia", "loss_auc")
IMAGES_A_ROW = 8


class PictureRow(NamedTuple):
    """A row of a picture: its name, images uint8 (n, h, w, c), and whether it was to be forgotten."""

    name: str
    images: np.ndarray
    forgotten: bool


class Embedding(NamedTuple):
    """`look` brings uint8 images (n, h, w, c) into a space, (n, d) float64; `hash` tells its network from any other."""

    look: Embedder
    hash: Callable[[], str]


class ModelOutputs:
    """One model under one task.

    A generator is judged by a held `classifier` on the images it draws for each class; a classifier by its own answers
    on `dataset`, of which the samples at positions `forget_ids` were forgotten (None: those of the task's classes), and
    on the test split, which `test` loads (None: the one of the data that the model records). `original` is the evidence
    of the unchanged model, made from the same seeds, `retrained` that of one which has never seen the forget set.
    `inception`, `clip` and `dinov2` name the networks in whose features distances are taken.
    """

    default_metrics: tuple[str, ...] = ("ua", "ra", "forget_share", "fd_classifier", "paired_distance")
    compared_with = "real"

    def __init__(
        self,
        model: Model,
        task: Task,
        dataset: Dataset,
        folder: Path,
        *,
        classifier: Classifier | None = None,
        original: ModelOutputs | None = None,
        settings: SamplingOptions | None = None,
        seed: int = 0,
        inception: str | None = None,
        clip: str | None = None,
        dinov2: str | None = None,
        forget_ids: np.ndarray | None = None,
        test: Callable[[], Dataset] | None = None,
        retrained: ModelOutputs | None = None,
    ) -> None:
        self.model, self.task, self.dataset, self.folder = model, task, dataset, folder
        self.held, self.original, self.retrained = classifier, original, retrained
        self.forget_ids, self._test = forget_ids, test
        if isinstance(model, Classifier):
            self.default_metrics = OF_CLASSIFIERS
        self.settings, self.seed = settings or SamplingOptions(), seed
        self.inception, self.clip, self.dinov2 = inception, clip, dinov2

    @property
    def labeler(self) -> Classifier:
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
    def labeler_hash(self) -> str | None:
        """Hash of the classifier that judges samples, None without one."""
        return None if self.held is None else self.held.hash

    def correct_in(self, kind: Kind) -> np.ndarray:
        """What prompts show; classes show nothing but themselves."""
        raise NotApplicableError("it needs prompts that say what they show: a text-to-image model and a concept")

    def clip_scores(self, part: Part) -> tuple[np.ndarray, str]:
        """What prompts say; classes say nothing."""
        raise NotApplicableError("it needs prompts: a text-to-image model and a concept")

    @cached_property
    def samples(self) -> LabeledImages:
        """The images judged: drawn by a generator, or those of the data set for a classifier."""
        if isinstance(self.model, DiffusionModel):
            return draw(self.model, range(len(self.task.class_names)), self.settings, self.seed, self.folder)
        return LabeledImages(self.dataset.images, self.dataset.labels)

    @cached_property
    def _answered(self) -> tuple[np.ndarray, np.ndarray]:
        logits, features = self.labeler.describe(to_float(self.samples.images))
        return logits.double().numpy(), features.double().numpy()

    @cached_property
    def _described(self) -> tuple[np.ndarray, np.ndarray]:
        logits, features = self._answered
        return logits.argmax(1), features

    @property
    def predicted(self) -> np.ndarray:
        """The class the judge sees in each image, (n,)."""
        return self._described[0]

    def chosen(self, part: Part) -> np.ndarray:
        """Which images belong to the forgotten or the retained classes, (n,) booleans."""
        self._need_classes()
        labels = self.samples.labels
        if self.forget_ids is not None:
            forgotten = np.isin(range(len(labels)), self.forget_ids)
            return forgotten if part == "forget" else ~forgotten & ~np.isin(labels, self.task.already_erased)
        if part == "forget" and not self.task.forget:
            raise NotApplicableError("no class is named as forgotten: give --forget")
        return np.isin(labels, self.task.forget if part == "forget" else self.task.retain)

    def correct(self, part: Part) -> np.ndarray:
        """Whether the judge sees the class that was asked for, one boolean an image of the part."""
        return (self.predicted == self.samples.labels)[self.chosen(part)]

    def answers(self, part: Split) -> Predictions:
        """A classifier's own answers to the samples of a part; raises NotApplicableError for any other model."""
        need_one_label(self.model)
        if part == "test":
            return self._tested
        return Predictions(finite(self._answered[0]), self.samples.labels).of(self.chosen(part))

    @cached_property
    def _tested(self) -> Predictions:
        """Those to the test split, without the classes that were forgotten as a whole."""
        gone = {*self.task.already_erased, *(self.task.forget if self.forget_ids is None else ())}
        return tested(need_one_label(self.model), self._test, self.dataset.class_names, gone)

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
        return self.labeler.describe(to_float(self.reference(part).images))[1].double().numpy()

    @property
    def paired_features(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Features of kept images and of the original's from the same seeds, (n, d) each, and whose they are."""
        if self.original is None:
            raise NotApplicableError("paired_distance compares a cleaned model with its original: there is none here")
        return self.features("retain"), self.original.features("retain"), "classifier"

    @cached_property
    def inception_pair(self) -> Pair:
        """Inception features of the retained part's images (n, 2048) and of those they are compared with (m, 2048)."""
        return self._pair("inception")

    @cached_property
    def clip_pair(self) -> Pair:
        """CLIP's unit image embeddings of the retained part (n, d) and of what it is compared with (m, d)."""
        return self._pair("clip")

    @cached_property
    def dinov2_pair(self) -> Pair:
        """DINOv2's features of the retained part (n, d) and of what it is compared with (m, d)."""
        return self._pair("dinov2")

    def counted(self, reference: np.ndarray) -> dict[str, int]:
        """How many images stand on the other side, and which: `n_real`."""
        return {f"n_{self.compared_with}": len(reference)}

    def _pair(self, space: Space) -> Pair:
        """Both sides in one space; raises NotApplicableError without its network, or below two images a side."""
        self._need_generator()
        look, network_hash = embedding(space, getattr(self, space), self.model.device)
        real = self.reference("retain")
        drawn = self.samples.images[self.chosen("retain") if self.has_classes else slice(None)]
        need_two(len(drawn), len(real))
        return look(drawn), remembered(real, f"{space} {network_hash()}", look)

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


def need_network(space: Space, given: str | None) -> None:
    """Raise NotApplicableError unless the network of a space was named; Inception's may also lie in a cache."""
    if space == "inception":
        inception_file(given)
    elif given is None:
        raise NotApplicableError(f"no {MODELS[space]} model was named: give --{space}, a folder or a hub id")


def remembered(reference: Dataset, network_hash: str, look: Embedder) -> np.ndarray:
    """What `look` makes of the images of a data set, (m, d); taken once, then read from the user's cache."""
    key = fingerprint({"images": reference.hash, "judge": network_hash})
    path = cache_folder() / "features" / f"{key[:32]}.safetensors"
    if path.is_file():
        return read_tensors(path)[0]["features"].numpy()
    features = look(reference.images)
    if is_main():
        write_tensors(path, {"features": torch.from_numpy(features)})
    return features


def embedding(space: Space, given: str | None, device: torch.device) -> Embedding:
    """The way into a space by the network that `given` names.

    Raises NotApplicableError when it names none, ModelError when that is damaged or another.
    """
    if space == "inception":
        inception = load_inception(given).to(device)
        return Embedding(
            lambda images: np.concatenate(
                [
                    inception_features(inception, to_float(images[i : i + BATCH_SIZE]), BATCH_SIZE)
                    for i in range(0, len(images), BATCH_SIZE)
                ]
            ),
            lambda: hash_tensors(inception.state_dict()),
        )
    need_network(space, given)
    assert given is not None
    if space == "dinov2":
        dinov2 = load_dinov2(given, device)
        return Embedding(lambda images: dinov2_features(dinov2, images), lambda: dinov2.hash)
    clip = load_clip(given, device)
    return Embedding(lambda images: normalize(clip_image_features(clip, images).double()).numpy(), lambda: clip.hash)


def probe(
    model: DiffusionModel, task: Task, labeler: Classifier, seeds: dict[int, list[int]], steps: int
) -> dict[str, float]:
    """A quick look during training: UA and RA in percent over few samples, `seeds` by class, few denoising steps."""
    labels = torch.tensor([label for label, own in seeds.items() for _ in own])
    images = model.generate(labels, [seed for own in seeds.values() for seed in own], num_inference_steps=steps)
    correct = labeler.describe(images)[0].argmax(1) == labels
    forgotten = torch.isin(labels, torch.tensor(task.forget))
    return {
        "ua": 100 - 100 * float(correct[forgotten].float().mean()),
        "ra": 100 * float(correct[~forgotten].float().mean()),
    }
