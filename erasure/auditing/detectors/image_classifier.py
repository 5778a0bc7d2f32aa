"""image_classifier: the probabilities of any image classifier, ours or of transformers (such as He et al., 2016).

Classes are the names of its labels. For a classifier of several aspects of an image they are the values of all aspects;
where two aspects have the same value (a left and a right "three"), its score is the larger one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from erasure.auditing.detectors.base import Scorer
from erasure.core.errors import ModelError, OptionError
from erasure.core.records import Facts
from erasure.data.images import to_float
from erasure.evaluation.classifiers import NOTHING, OwnLabeler, TransformersLabeler, open_labeler


class ImageClassifier(Scorer):
    """Softmax probabilities by label."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Which classifier."""

        model: Annotated[str, "classifier: a folder, a run, a shipped name, or a hub id"] = ""

    closed = True
    threshold = 0.5

    def __init__(self, options: Options, device: torch.device) -> None:
        super().__init__(options, device)
        if not options.model:
            raise OptionError(
                "detector image_classifier needs its `model`: a folder, a run, a shipped name, or a hub id"
            )
        if options.model.startswith("clip:"):
            raise OptionError(f"{options.model} is not an image classifier: use the detector clip_zero_shot for a CLIP")
        labeler = open_labeler(options.model, (), device)
        assert isinstance(labeler, OwnLabeler | TransformersLabeler)
        self._labeler = labeler
        self._names = _names(labeler)
        self.classes = tuple(dict.fromkeys(name for block in self._names for name in block if name))
        if isinstance(labeler, OwnLabeler) and labeler.model.info["channels"] != 3:
            raise ModelError(
                f"{options.model} reads {labeler.model.info['channels']} channel: detectors read RGB images"
            )

    def _identity(self) -> Facts:
        return {"weights": self._labeler.hash}

    def _scores(self, images: np.ndarray) -> np.ndarray:
        place = {name: i for i, name in enumerate(self.classes)}
        scores = torch.zeros(len(images), len(self.classes))
        for names, logits in zip(self._names, self._blocks(images), strict=True):
            # Labels with the same name, of which ImageNet has several, are one class: their probabilities are added.
            summed = torch.zeros_like(scores)
            kept = [i for i, name in enumerate(names) if name in place]
            summed.index_add_(1, torch.tensor([place[names[i]] for i in kept]), logits.float().softmax(dim=1)[:, kept])
            scores = torch.maximum(scores, summed)
        return scores.clamp(max=1).numpy()

    def _blocks(self, images: np.ndarray) -> list[Tensor]:
        """Logits (n, labels) of each aspect, or the only ones."""
        if isinstance(self._labeler, TransformersLabeler):
            return [self._labeler.logits_and_features(images)[0]]
        model = self._labeler.model
        logits, _ = model.describe(to_float(images))
        return list(model.blocks(logits).values()) if model.aspects else [logits]


def _names(labeler: OwnLabeler | TransformersLabeler) -> list[list[str]]:
    """The name of each label of each block, "" for the label that stands for nothing."""
    if isinstance(labeler, TransformersLabeler):
        return [_label_names(labeler)]
    aspects = labeler.model.aspects
    if not aspects:
        return [list(labeler.model.class_names)]
    return [["" if name == NOTHING else name for name in aspect.names] for aspect in aspects.values()]


def _label_names(labeler: TransformersLabeler) -> list[str]:
    """The first name of each label, such as of "church, church building", unless another label has the same one."""
    config = labeler.network.config
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    first = [label.split(",")[0].strip() for label in labels]
    times = Counter(name.casefold() for name in first)
    return [name if times[name.casefold()] == 1 else label for name, label in zip(first, labels, strict=True)]
