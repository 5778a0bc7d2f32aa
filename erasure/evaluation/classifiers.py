"""ImageLabeler: label what an image shows, by domain, and compute its features.

Prompts say what they should show as (domain, value) pairs, such as ("object", "church"); a domain that comes twice
means two things in order. A labeler is a classifier of ours, an image classifier of transformers, or a zero-shot CLIP
(Radford et al., 2021). It answers in the values of the prompts: where its own label is "church, church building" and a
prompt shows "church", it says "church".
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

OBJECT = "object"  # the domain of a labeler that knows only one, unless the prompts name another
NOTHING = "none"  # the label of an aspect where there is nothing
FEWEST = 10  # with two values to choose from, zero-shot CLIP calls everything one of them
LISTED = 30  # an error lists this many labels; of more, only the nearest
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
    """What n images show.

    `values` are strings (n, k) in order for each domain, "" where there is nothing; `features` is (n, d).
    """

    values: dict[str, np.ndarray]
    features: np.ndarray


class ImageLabeler(ABC):
    """Labels images. `domains` are the values it can choose from, by domain."""

    name: str
    domains: Mapping[str, tuple[str, ...]]

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of what decides its labels."""

    @abstractmethod
    def describe(self, images: np.ndarray) -> ImageLabels:
        """Label uint8 images (n, h, w, 3); raises DataError for anything else."""


class OwnLabeler(ImageLabeler):
    """A classifier of ours: it labels the aspects it was trained on, those of one domain in order, or else classes."""

    def __init__(self, name: str, model: Classifier, wanted: Mapping[str, Sequence[str]]) -> None:
        self.name, self.model = name, model
        aspects = model.aspects or {_only(name, wanted): Aspect(model.class_names, ())}
        self._labels = {name: aspect.names for name, aspect in aspects.items()}
        self._members: dict[str, list[str]] = {}
        for aspect_name, aspect in aspects.items():
            self._members.setdefault(aspect.domain or aspect_name, []).append(aspect_name)
        for domain in wanted:
            if domain not in self._members:
                raise OptionError(f"classifier {name} does not label {domain!r}{suggestion(domain, self._members)}")
        self._value_of = {}
        for domain, members in self._members.items():
            labels = dict.fromkeys(label for aspect in members for label in self._labels[aspect])
            labels.pop(NOTHING, None)
            values = _named(list(labels), wanted.get(domain, ()), name)
            self._value_of[domain] = {NOTHING: "", **dict(zip(labels, values, strict=True))}
        self.domains = {domain: tuple(filter(None, values.values())) for domain, values in self._value_of.items()}

    @property
    def hash(self) -> str:
        """SHA-256 of the classifier's weights."""
        return self.model.hash

    def describe(self, images: np.ndarray) -> ImageLabels:
        """The likeliest label of each aspect, or class, and the pooled features."""
        if not len(images):
            raise DataError("there are no images to label")
        described = [self.model.describe(to_float(part)) for part in _parts(images)]
        logits, features = (torch.cat(both) for both in zip(*described, strict=True))
        blocks = self.model.blocks(logits) if self.model.aspects else dict.fromkeys(self._labels, logits)
        values = {}
        for domain, members in self._members.items():
            value_of = self._value_of[domain]
            columns = [_column([value_of[label] for label in self._labels[one]], blocks[one]) for one in members]
            values[domain] = np.concatenate(columns, axis=1)
        return ImageLabels(values, features.double().numpy())


class TransformersLabeler(ImageLabeler):
    """An image classifier of transformers (ResNet, ViT, Swin, ConvNeXt, ...) with the labels of its config.json."""

    def __init__(
        self, name: str, network: Any, preprocessor: ImagePreprocessor, wanted: Mapping[str, Sequence[str]]
    ) -> None:
        self.name, self.network, self.preprocessor = name, network, preprocessor
        labels = [str(network.config.id2label[i]) for i in range(network.config.num_labels)]
        self._domain = _only(name, wanted)
        self._values = _named(labels, wanted.get(self._domain, ()), name)
        self.domains = {self._domain: tuple(dict.fromkeys(self._values))}
        linear = [
            part for part in network.modules() if isinstance(part, nn.Linear) and part.out_features == len(labels)
        ]
        if not linear:
            raise ModelError(
                f"classifier {name} has no linear layer for its {len(labels)} labels: its features are unknown"
            )
        self._head = linear[-1]

    @property
    def hash(self) -> str:
        """SHA-256 of the weights and of how images are prepared."""
        return hash_of(self.network, self.preprocessor)

    @torch.no_grad()
    def logits_and_features(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits (n, labels), and features (n, d): what the last linear layer receives; both on the CPU."""
        kept: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].flatten(1).cpu()))
        try:
            logits = [
                self.network(pixel_values=self.preprocessor(part, self.network.device)).logits.cpu()
                for part in _parts(images)
            ]
        finally:
            handle.remove()
        return torch.cat(logits), torch.cat(kept)

    def describe(self, images: np.ndarray) -> ImageLabels:
        """The likeliest label, and what its head receives."""
        logits, features = self.logits_and_features(images)
        return ImageLabels({self._domain: _column(self._values, logits)}, features.double().numpy())


class ZeroShotLabeler(ImageLabeler):
    """A CLIP that picks, in each domain, the value whose prompt is nearest to the image."""

    def __init__(self, name: str, model: ClipModel, wanted: Mapping[str, Sequence[str]]) -> None:
        self.name, self.model = name, model
        self.domains = {domain: _enough(name, domain, values) for domain, values in wanted.items()}
        if not self.domains:
            raise OptionError(
                f"zero-shot CLIP {name} needs values to choose from: give prompts that say what they show"
            )
        self._text = {
            domain: clip_text_features(model, [PROMPTS.get(domain, "{}").format(value) for value in values])
            for domain, values in self.domains.items()
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the weights, of how images are prepared, and of the values to choose from."""
        return fingerprint({"model": self.model.hash, "domains": self.domains, "prompts": PROMPTS})

    def describe(self, images: np.ndarray) -> ImageLabels:
        """The value of the largest cosine in each domain, and the projected embeddings."""
        features = clip_image_features(self.model, images)
        # An image's length scales all its cosines alike and changes no order.
        values = {
            domain: _column(self.domains[domain], features @ nn.functional.normalize(text).T)
            for domain, text in self._text.items()
        }
        return ImageLabels(values, features.double().numpy())


def open_labeler(given: str, wanted: Sequence[tuple[str, str]], device: torch.device | str = "cpu") -> ImageLabeler:
    """Load the labeler that `given` names, for every (domain, value) of `wanted`.

    `given` is a classifier of ours (a folder, a run, a shipped name), an image classifier of transformers (a folder or
    hub id), or `clip:` and a CLIP model. Raises ModelError when it is missing or another kind of model, OptionError
    when it does not know a domain or a value, or has fewer than ten values to choose from by zero shot.
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
    """The domain of a labeler that has only one: the wanted one."""
    domains = list(wanted) or [OBJECT]
    if len(domains) > 1:
        raise OptionError(f"classifier {name} labels one domain, not {' and '.join(domains)}: give one that knows them")
    return domains[0]


def _named(labels: Sequence[str], values: Sequence[str], labeler: str) -> tuple[str, ...]:
    """The value of each label: the wanted value that means it, else the first of the label's own names.

    A value means the labels of the same text, else those that have it among their names between commas, in any case.
    Raises OptionError when a value means no label, or two values mean the same one.
    """
    names = [[part.strip().casefold() for part in label.split(",")] for label in labels]
    called: dict[int, str] = {}
    for value in values:
        folded = value.strip().casefold()
        same = [i for i, label in enumerate(labels) if label.strip().casefold() == folded]
        for i in same or [i for i, own in enumerate(names) if folded in own]:
            if i in called:
                raise OptionError(
                    f"classifier {labeler} has one label for {called[i]!r} and {value!r}: name one of the two"
                )
            called[i] = value
        if value not in called.values():
            raise OptionError(f"classifier {labeler} has no label {value!r}{_near(value, labels)}")
    taken = {value.strip().casefold() for value in values}
    first = [
        label if own[0] in taken else label.split(",")[0].strip() for label, own in zip(labels, names, strict=True)
    ]
    return tuple(called.get(i, name) for i, name in enumerate(first))


def _near(value: str, labels: Sequence[str]) -> str:
    """The labels nearest to `value`; all labels where there are few."""
    known = sorted({part.strip() for label in labels for part in label.split(",")})
    if len(known) <= LISTED or difflib.get_close_matches(value, known, n=1, cutoff=0.6):
        return suggestion(value, known)
    near = difflib.get_close_matches(value, known, n=3, cutoff=0.0)
    return f" (of its {len(labels)}, the nearest are {', '.join(near)})"


def _enough(name: str, domain: str, values: Sequence[str]) -> tuple[str, ...]:
    """The wanted values, topped up with distractors that share no word with them; raises OptionError below ten."""
    words = {word for value in values for word in value.casefold().split()}
    others = [other for other in DISTRACTORS.get(domain, ()) if words.isdisjoint(other.casefold().split())]
    choices = (*_named(values, values, name), *others[: max(0, FEWEST - len(values))])
    if len(choices) < FEWEST:
        raise OptionError(
            f"zero-shot CLIP {name} would choose among {len(choices)} values of the domain {domain!r}, and needs at "
            f"least {FEWEST}: name more values, or give a classifier"
        )
    return choices


def _parts(images: np.ndarray) -> list[np.ndarray]:
    """The images in batches, at least one, so that the preprocessor refuses an empty array."""
    return [images[i : i + BATCH_SIZE] for i in range(0, max(len(images), 1), BATCH_SIZE)]


def _column(values: Sequence[str], scores: Tensor) -> np.ndarray:
    """The value with the largest score of each row of (n, values), as (n, 1)."""
    return np.array([[values[i]] for i in scores.argmax(1).tolist()], dtype=object)
