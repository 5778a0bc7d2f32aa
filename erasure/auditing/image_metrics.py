"""Outputs of an audited model: images on disk with their prompts, beside the base model's or real ones.

Images are read in batches and not kept: memory grows with features, not with pixels, so ten thousand images of
512 x 512 need hardly more memory than a hundred. Metrics treat all of them as the retain part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
import torch

from erasure.core.distributed import device
from erasure.core.errors import DataError, NotApplicableError
from erasure.data.images import read_image
from erasure.data.task import Task
from erasure.evaluation.classifiers import ImageLabeler, open_labeler
from erasure.evaluation.distances import need_two
from erasure.evaluation.features.clip import clip_text_scores, load_clip
from erasure.evaluation.features.networks import BATCH_SIZE
from erasure.evaluation.features.spaces import Embedder, Space, embedding, need_network
from erasure.evaluation.outputs import ModelOutputs, Pair, Part
from erasure.evaluation.settings import EvaluationConfig
from erasure.sampling.draw import LabeledImages

SPACES = ("classifier", "clip", "dinov2")  # pairs are compared in the first whose network was named
PIXELS = 1 << 23  # of a batch: 32 images of 512 x 512, or one photograph
THREADS = 4  # decode a batch: a PNG takes ten times as long as a small network on a GPU
CLASSLESS = "an audit's images belong to no class"


class AuditOutputs(ModelOutputs):
    """Image `paths` of one model, generated from `prompts` (one each), and `reference` images to compare them with.

    `paired` says that reference image i is the base model's from the seed of image i; otherwise they are other images
    in any number, such as real ones. The networks of `config` are loaded when a metric asks. Raises DataError for other
    lengths.
    """

    has_classes = False
    default_metrics = ("clip_score", "fid", "kid", "cmmd", "fd_dinov2", "fd_classifier", "paired_distance")

    def __init__(
        self,
        paths: Sequence[Path],
        prompts: Sequence[str],
        reference: Sequence[Path] = (),
        config: EvaluationConfig | None = None,
        *,
        paired: bool = False,
    ) -> None:
        if len(paths) != len(prompts):
            raise DataError(f"{len(paths)} images and {len(prompts)} prompts: expected one prompt for each image")
        if paired and len(reference) != len(paths):
            raise DataError(f"{len(paths)} images and {len(reference)} of the base model: expected a pair for each")
        self.paths, self.prompts, self.others, self.paired = tuple(paths), tuple(prompts), tuple(reference), paired
        super().__init__(Task((), ()), config or EvaluationConfig())
        self._device = device()
        self.compared_with = "base" if paired else "reference"
        self._embeddings: dict[str, Embedder] = {}
        self._computed: dict[tuple[str, bool], np.ndarray] = {}

    @cached_property
    def _labeler(self) -> ImageLabeler:
        if self.config.classifier is None:
            raise NotApplicableError("no classifier was named: give --classifier, a model folder or a hub id")
        return open_labeler(self.config.classifier, (), self._device)

    @property
    def labeler_hash(self) -> str | None:
        """Hash of the classifier, None without one."""
        return None if self.config.classifier is None else self._labeler.hash

    @property
    def samples(self) -> LabeledImages:
        """Raise NotApplicableError: images are read in batches, and belong to no class."""
        raise NotApplicableError(CLASSLESS)

    @property
    def predicted(self) -> np.ndarray:
        """Raise NotApplicableError: no image belongs to a class."""
        raise NotApplicableError(CLASSLESS)

    def chosen(self, part: Part) -> np.ndarray:
        """Raise NotApplicableError: no prompt of an audit belongs to a forget or retain part."""
        raise NotApplicableError(CLASSLESS)

    def clip_scores(self, part: Part) -> tuple[np.ndarray, str]:
        """CLIP's score of each image against its prompt, (n,), and the model's name; there is no forgotten part."""
        self._need_images(part)
        given = self.config.clip
        need_network("clip", given)
        assert given is not None
        embeddings = torch.from_numpy(self._features("clip"))
        return clip_text_scores(load_clip(given, self._device), embeddings, self.prompts), given

    def features(self, part: Part) -> np.ndarray:
        """The classifier's features of the images, (n, d)."""
        self._need_images(part)
        return self._both("classifier")[0]

    def reference_features(self, part: Part) -> np.ndarray:
        """The classifier's features of the reference, (m, d)."""
        self._need_images(part)
        return self._both("classifier")[1]

    def paired_features(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Features of each image and of the base's from its seed, in the first space of SPACES that was configured."""
        self._need_images("retain")
        if not self.paired:
            raise NotApplicableError("paired_distance compares images of the same seeds: give --base")
        for space in SPACES:
            given = getattr(self.config, space)
            if given is not None:
                return self._features(space), self._features(space, other=True), f"{space}:{given}"
        raise NotApplicableError("a distance needs features: give --classifier, --clip or --dinov2")

    def pair(self, space: Space) -> Pair:
        """Features of the images (n, d) and of the reference (m, d) in a named space."""
        return self._both(space)

    def _both(self, space: str) -> Pair:
        """Features of the images (n, d) and of the reference (m, d)."""
        self._embedding(space)  # reports a network that was not named before missing images
        if not self.others:
            raise NotApplicableError("there are no other images to compare with: give --base or --reference")
        need_two(len(self.paths), len(self.others))
        return self._features(space), self._features(space, other=True)

    def _features(self, space: str, other: bool = False) -> np.ndarray:
        """Features (n, d) of the images, or of the `other` ones, computed once."""
        if (space, other) not in self._computed:
            embed = self._embedding(space)
            paths = self.others if other else self.paths
            self._computed[space, other] = np.concatenate([embed(images) for images in batches(paths)])
        return self._computed[space, other]

    def _embedding(self, space: str) -> Embedder:
        if space not in self._embeddings:
            if space == "classifier":
                labeler = self._labeler
                self._embeddings[space] = lambda images: labeler.describe(images).features
            else:
                self._embeddings[space] = embedding(cast(Space, space), getattr(self.config, space), self._device).embed
        return self._embeddings[space]

    def _need_images(self, part: Part) -> None:
        if part == "forget":
            raise NotApplicableError(CLASSLESS)
        if not self.paths:
            raise NotApplicableError("there are no images")


def batches(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """The images of `paths` in order, in batches uint8 (n, h, w, 3) of one size; raises DataError for another file."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(paths), BATCH_SIZE):
            images = pool.map(lambda path: read_image(path, str(path), 3), paths[start : start + BATCH_SIZE])
            for (height, width, _), run in groupby(images, key=np.shape):
                same, batch_size = list(run), max(1, PIXELS // (height * width))
                for i in range(0, len(same), batch_size):
                    yield np.stack(same[i : i + batch_size])
