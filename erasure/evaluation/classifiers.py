"""Judges: who says what an image shows, by domain, and describes it by features.

A prompt is written down with what it should show as (domain, value) pairs, such as ("object", "church"); a domain that
comes twice means two things in order. A judge is a classifier of ours, an image classifier of transformers, or a
zero-shot CLIP (Radford et al., 2021), and answers in the words that were wanted: where its label is "church, church
building" and "church" is wanted, it says "church".
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.errors import DataError, ModelError, OptionError, suggestion
from erasure.core.run_dir import fingerprint
from erasure.data import Aspect
from erasure.data.images import to_float
from erasure.evaluation.features.clip import ClipModel, clip_image_features, clip_text_features, load_clip
from erasure.evaluation.features.networks import BATCH_SIZE, load_network, local_folder
from erasure.evaluation.features.preprocessing import ImagePreprocessor, hash_of
from erasure.models import load_family
from erasure.models.classifier import Classifier
from erasure.models.info import read_info

OBJECT = "object"  # the domain of a judge that knows only one, where nothing says otherwise
NOTHING = "none"  # how an aspect's answer says that nothing is there
FEWEST = 10  # with two labels, zero-shot CLIP calls everything one of them
LISTED = 30  # an error lists this many answers; of more, only those that are near
PROMPTS = {"object": "a photo of a {}", "style": "a painting in the style of {}"}
# What an image may show instead, chosen to be unlike each other and unlike what people erase.
DISTRACTORS = {
    "object": (
        *("bicycle", "umbrella", "teapot", "banana", "piano", "cactus", "lighthouse", "suitcase", "penguin", "pizza"),
        *("telescope", "sailboat", "wristwatch", "snowman", "mushroom", "ladder", "sofa", "helicopter", "candle"),
    ),
    "style": (
        *("Rembrandt", "Johannes Vermeer", "Katsushika Hokusai", "Piet Mondrian", "Sandro Botticelli"),
        *("Jackson Pollock", "Edward Hopper", "Gustav Klimt", "Caspar David Friedrich", "Albrecht Dürer"),
        *("Georges Seurat", "Andy Warhol", "Frida Kahlo", "Paul Klee", "Diego Velázquez", "Francisco Goya"),
    ),
}


@dataclass(frozen=True)
class ImageLabels:
    """What was seen in n images.

    `told` has the values seen by domain, (n, k) strings in order, "" where there is nothing; `features` is (n, d).
    """

    told: dict[str, np.ndarray]
    features: np.ndarray


class ImageLabeler(ABC):
    """Says what images show. `domains` are the answers it can give, by domain."""

    name: str
    domains: Mapping[str, tuple[str, ...]]

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 that tells this judge from any other."""

    @abstractmethod
    def describe(self, images: np.ndarray) -> ImageLabels:
        """What uint8 images (n, h, w, 3) show; raises DataError for anything else."""


class OwnLabeler(ImageLabeler):
    """A classifier of ours: it tells the aspects it was trained on, those of one domain in order, or else classes."""

    def __init__(self, name: str, model: Classifier, wanted: Mapping[str, Sequence[str]]) -> None:
        self.name, self.model = name, model
        aspects = model.aspects or {_only(name, wanted): Aspect(model.class_names, ())}
        self._answers = {aspect: told.names for aspect, told in aspects.items()}
        self._members: dict[str, list[str]] = {}
        for aspect, told in aspects.items():
            self._members.setdefault(told.domain or aspect, []).append(aspect)
        for domain in wanted:
            if domain not in self._members:
                raise OptionError(f"judge {name} tells nothing of {domain!r}{suggestion(domain, self._members)}")
        self._said = {}
        for domain, members in self._members.items():
            labels = dict.fromkeys(label for aspect in members for label in self._answers[aspect])
            labels.pop(NOTHING, None)
            said = _named(list(labels), wanted.get(domain, ()), name)
            self._said[domain] = {NOTHING: "", **dict(zip(labels, said, strict=True))}
        self.domains = {domain: tuple(filter(None, said.values())) for domain, said in self._said.items()}

    @property
    def hash(self) -> str:
        """SHA-256 of the classifier's weights."""
        return self.model.hash

    def describe(self, images: np.ndarray) -> ImageLabels:
        """The likeliest answer of each aspect, or class, and the pooled features."""
        if not len(images):
            raise DataError("there are no images to judge")
        described = [self.model.describe(to_float(part)) for part in _parts(images)]
        logits, features = (torch.cat(both) for both in zip(*described, strict=True))
        blocks = self.model.blocks(logits) if self.model.aspects else dict.fromkeys(self._answers, logits)
        told = {}
        for domain, members in self._members.items():
            said = self._said[domain]
            columns = [_column([said[label] for label in self._answers[one]], blocks[one]) for one in members]
            told[domain] = np.concatenate(columns, axis=1)
        return ImageLabels(told, features.double().numpy())


class TransformersLabeler(ImageLabeler):
    """An image classifier of transformers (ResNet, ViT, Swin, ConvNeXt, ...) with the labels of its config.json."""

    def __init__(
        self, name: str, network: Any, reading: ImagePreprocessor, wanted: Mapping[str, Sequence[str]]
    ) -> None:
        self.name, self.network, self.reading = name, network, reading
        labels = [str(network.config.id2label[i]) for i in range(network.config.num_labels)]
        self._domain = _only(name, wanted)
        self._said = _named(labels, wanted.get(self._domain, ()), name)
        self.domains = {self._domain: tuple(dict.fromkeys(self._said))}
        linear = [
            part for part in network.modules() if isinstance(part, nn.Linear) and part.out_features == len(labels)
        ]
        if not linear:
            raise ModelError(f"judge {name} has no linear layer for its {len(labels)} labels: its features are unknown")
        self._head = linear[-1]

    @property
    def hash(self) -> str:
        """SHA-256 of the weights and of how images are read."""
        return hash_of(self.network, self.reading)

    @torch.no_grad()
    def logits_and_features(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits (n, labels), and features (n, d): what the last linear layer receives; both on the CPU."""
        kept: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].flatten(1).cpu()))
        try:
            logits = [
                self.network(pixel_values=self.reading(part, self.network.device)).logits.cpu()
                for part in _parts(images)
            ]
        finally:
            handle.remove()
        return torch.cat(logits), torch.cat(kept)

    def describe(self, images: np.ndarray) -> ImageLabels:
        """The likeliest label, and what its head receives."""
        logits, features = self.logits_and_features(images)
        return ImageLabels({self._domain: _column(self._said, logits)}, features.double().numpy())


class ZeroShotLabeler(ImageLabeler):
    """A CLIP that picks, in each domain, the value whose prompt is nearest to the image."""

    def __init__(self, name: str, model: ClipModel, wanted: Mapping[str, Sequence[str]]) -> None:
        self.name, self.model = name, model
        self.domains = {domain: _enough(name, domain, values) for domain, values in wanted.items()}
        if not self.domains:
            raise OptionError(f"judge {name} knows only what it is asked for: name the values that prompts should show")
        self._text = {
            domain: clip_text_features(model, [PROMPTS.get(domain, "{}").format(value) for value in values])
            for domain, values in self.domains.items()
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the weights, of how images are read, and of the answers to choose from."""
        return fingerprint({"model": self.model.hash, "domains": self.domains, "prompts": PROMPTS})

    def describe(self, images: np.ndarray) -> ImageLabels:
        """The value of the largest cosine in each domain, and the projected embeddings."""
        features = clip_image_features(self.model, images)
        # An image's length scales all its cosines alike and changes no order.
        told = {
            domain: _column(self.domains[domain], features @ nn.functional.normalize(text).T)
            for domain, text in self._text.items()
        }
        return ImageLabels(told, features.double().numpy())


def open_labeler(given: str, wanted: Sequence[tuple[str, str]], device: torch.device | str = "cpu") -> ImageLabeler:
    """The judge that `given` means, able to tell every (domain, value) of `wanted`.

    `given` is a classifier of ours (a folder, a run, a shipped name), an image classifier of transformers (a folder or
    hub id), or `clip:` and a CLIP model. Raises ModelError when it is missing or something else, OptionError when it
    does not know a domain or a value, or would choose among fewer than ten by zero shot.
    """
    by_domain: dict[str, list[str]] = {}
    for domain, value in dict.fromkeys(wanted):
        by_domain.setdefault(domain, []).append(value)
    if given.startswith("clip:"):
        return ZeroShotLabeler(given, load_clip(given.removeprefix("clip:"), device), by_domain)
    folder = local_folder(given)
    if "family" in read_info(Path(folder)):
        model = load_family(folder, Classifier).to(torch.device(device))
        return OwnLabeler(given, model, by_domain)
    from transformers import AutoModelForImageClassification

    network = load_network(AutoModelForImageClassification, folder).to(torch.device(device))
    return TransformersLabeler(given, network, ImagePreprocessor.of(folder), by_domain)


def _only(name: str, wanted: Iterable[str]) -> str:
    """The domain of a judge that tells one: that which is wanted."""
    domains = list(wanted) or [OBJECT]
    if len(domains) > 1:
        raise OptionError(f"judge {name} tells one domain, not {' and '.join(domains)}: give a judge that knows them")
    return domains[0]


def _named(labels: Sequence[str], values: Sequence[str], labeler: str) -> tuple[str, ...]:
    """What each label is called: by the wanted value that means it, else by the first of its own names.

    A value means the labels that are the same text, else those that have it among their names, between commas; case
    does not count. Raises OptionError when a value means none, or two values mean the same label.
    """
    names = [[part.strip().casefold() for part in label.split(",")] for label in labels]
    called: dict[int, str] = {}
    for value in values:
        folded = value.strip().casefold()
        same = [i for i, label in enumerate(labels) if label.strip().casefold() == folded]
        for i in same or [i for i, own in enumerate(names) if folded in own]:
            if i in called:
                raise OptionError(
                    f"judge {labeler} gives one answer for {called[i]!r} and {value!r}: want one of the two"
                )
            called[i] = value
        if value not in called.values():
            raise OptionError(f"judge {labeler} has no answer {value!r}{_near(value, labels)}")
    taken = {value.strip().casefold() for value in values}
    first = [
        label if own[0] in taken else label.split(",")[0].strip() for label, own in zip(labels, names, strict=True)
    ]
    return tuple(called.get(i, name) for i, name in enumerate(first))


def _near(value: str, labels: Sequence[str]) -> str:
    """The answers nearest to `value`; of a judge that has few, all of them."""
    known = sorted({part.strip() for label in labels for part in label.split(",")})
    if len(known) <= LISTED or difflib.get_close_matches(value, known, n=1, cutoff=0.6):
        return suggestion(value, known)
    near = difflib.get_close_matches(value, known, n=3, cutoff=0.0)
    return f" (of its {len(labels)}, the nearest are {', '.join(near)})"


def _enough(name: str, domain: str, values: Sequence[str]) -> tuple[str, ...]:
    """The wanted values, topped up with distractors that share no word with them; raises OptionError below ten."""
    words = {word for value in values for word in value.casefold().split()}
    others = [other for other in DISTRACTORS.get(domain, ()) if words.isdisjoint(other.casefold().split())]
    answers = (*_named(values, values, name), *others[: max(0, FEWEST - len(values))])
    if len(answers) < FEWEST:
        raise OptionError(
            f"judge {name} would choose among {len(answers)} answers of the domain {domain!r}: "
            f"zero-shot CLIP needs at least {FEWEST}, so want more values or give a classifier"
        )
    return answers


def _parts(images: np.ndarray) -> list[np.ndarray]:
    """The images in batches, at least one, so that an empty array is refused by whoever reads it."""
    return [images[i : i + BATCH_SIZE] for i in range(0, max(len(images), 1), BATCH_SIZE)]


def _column(said: Sequence[str], scores: Tensor) -> np.ndarray:
    """The name of the largest of each row of scores (n, answers), as (n, 1)."""
    return np.array([[said[i]] for i in scores.argmax(1).tolist()], dtype=object)
