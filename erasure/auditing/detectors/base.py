"""Detector: raw scores for each class in an image and, where the detector locates, boxes."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch

from erasure.core.config import build
from erasure.core.errors import DataError, OptionError, suggestion
from erasure.core.records import Facts
from erasure.core.run_dir import fingerprint


class Box(NamedTuple):
    """Where a class was detected: its index, its score, and left, top, width, height in pixels of the image."""

    label: int
    score: float
    x: float
    y: float
    w: float
    h: float


class Detection(NamedTuple):
    """One image: the largest score of each class, (k,) float32 before any threshold, and its boxes.

    Boxes are those above the detector's own threshold, best first; None when the detector does not locate.
    """

    scores: np.ndarray
    boxes: tuple[Box, ...] | None


class Detector(ABC):
    """The base of every detector. `Options` is a frozen dataclass whose fields are its flags.

    `core` are the classes that are the concept unless the user names others (empty: the user must), `wide` a second set
    that is reported separately. `control` are classes that a real photograph of a face shows; `closed` says that the
    detector chooses one of its classes for any image. An image shows a class whose score reaches `threshold`, as
    published.
    """

    Options: ClassVar[Any]
    classes: tuple[str, ...]
    core: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    closed: bool = False
    threshold: float

    def __init__(self, options: Any, device: torch.device) -> None:
        """Load the network; raises OptionError for options out of range, ModelError for weights that do not fit."""
        self.options, self.device = options, device

    @classmethod
    def open(cls, given: Mapping[str, Any], device: torch.device | str = "cpu") -> Self:
        """The detector with the given options, loaded; raises OptionError for an unknown option or choice."""
        options = build(cls.Options, f"detector {cls.name()}", given)
        hints = typing.get_type_hints(cls.Options)
        for field in fields(cls.Options):
            value, hint = getattr(options, field.name), hints[field.name]
            if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
                raise OptionError(
                    f"detector {cls.name()} has no {field.name} {value!r}"
                    f"{suggestion(str(value), map(str, typing.get_args(hint)))}"
                )
        return cls(options, torch.device(device))

    @classmethod
    def name(cls) -> str:
        """The plug-in's name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that decides a score: weights, preprocessing, options."""
        return fingerprint({"detector": self.name(), "classes": self.classes, **self._identity()})

    @abstractmethod
    def _identity(self) -> Facts:
        """What decides a score, as plain JSON values; the path of a file does not."""

    @abstractmethod
    def _found(self, images: Sequence[np.ndarray]) -> list[Detection]:
        """The detections in each of these images, which have been checked."""

    def detect(self, images: Sequence[np.ndarray]) -> list[Detection]:
        """The detections in each image: uint8 RGB arrays (h, w, 3), whose sizes may differ.

        Raises DataError, for all images, when one is anything else or has a score that is not finite.
        """
        for i, image in enumerate(images):
            if not isinstance(image, np.ndarray):
                raise DataError(f"image {i} is {type(image).__name__}: expected a uint8 RGB array (h, w, 3)")
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise DataError(
                    f"image {i} is {image.dtype} of shape {image.shape}: expected a uint8 RGB array (h, w, 3)"
                )
        found = self._found(images)
        for i, one in enumerate(found):
            if not np.isfinite(one.scores).all():
                raise DataError(f"detector {self.name()} found no finite score in image {i}")
        return found


class Scorer(Detector):
    """A detector that does not locate, and scores images of one size together."""

    @abstractmethod
    def _scores(self, images: np.ndarray) -> np.ndarray:
        """Scores (n, k) of uint8 images (n, h, w, 3)."""

    def _found(self, images: Sequence[np.ndarray]) -> list[Detection]:
        sizes: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            sizes.setdefault(image.shape, []).append(i)
        scores = np.empty((len(images), len(self.classes)), np.float32)
        for places in sizes.values():
            scores[places] = self._scores(np.stack([images[i] for i in places]))
        return [Detection(row, None) for row in scores]
