"""clip_zero_shot: zero-shot CLIP over the concept's words and others (Radford et al., 2021).

The score of a word is the softmax of 100 cos(image, prompt) over all words. With fewer than ten words, distractors that
differ from them are added, because with few words CLIP assigns every image to one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import nn

from erasure.auditing.detectors.base import Scorer
from erasure.core.errors import OptionError
from erasure.core.records import Facts
from erasure.evaluation.classifiers import OBJECT, PROMPTS, ZeroShotLabeler
from erasure.evaluation.features.clip import clip_image_features, clip_text_features, load_clip

SCALE = 100.0  # the inverse temperature that CLIP was trained to


class ClipZeroShot(Scorer):
    """Zero-shot probabilities of words."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Which CLIP, and the words."""

        model: Annotated[str, "CLIP model: a folder or hub id"] = "openai/clip-vit-large-patch14"
        labels: Annotated[str, "the concept's words, separated by commas"] = ""
        others: Annotated[str, "words that are not the concept, separated by commas"] = ""
        domain: Annotated[str, "object or style: the prompt that words are put into; any other: words alone"] = OBJECT

    closed = True
    threshold = 0.5

    def __init__(self, options: Options, device: torch.device) -> None:
        super().__init__(options, device)
        self.core = _listed(options.labels)
        if not self.core:
            raise OptionError("detector clip_zero_shot needs `labels`: the concept's words, separated by commas")
        wanted = {options.domain: (*self.core, *_listed(options.others))}
        self._labeler = ZeroShotLabeler(f"clip:{options.model}", load_clip(options.model, device), wanted)
        self.classes = self._labeler.domains[options.domain]
        prompt = PROMPTS.get(options.domain, "{}")
        text = clip_text_features(self._labeler.model, [prompt.format(word) for word in self.classes])
        self._text = nn.functional.normalize(text.double())

    def _identity(self) -> Facts:
        return {"weights": self._labeler.hash, "scale": SCALE}

    def _scores(self, images: np.ndarray) -> np.ndarray:
        features = nn.functional.normalize(clip_image_features(self._labeler.model, images).double())
        return (SCALE * features @ self._text.T).softmax(dim=1).numpy()


def _listed(words: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
