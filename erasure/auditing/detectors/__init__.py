"""Detectors: is the concept in this image? A file is a name.

Raw scores are kept and thresholds are applied afterwards; an image that could not be scored is unscored, never safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from erasure.auditing.detectors.base import Box, Detection, Detector
from erasure.core import registry

__all__ = ["Box", "Detection", "Detector", "open_detector"]


def open_detector(name: str, given: Mapping[str, Any] | None = None, device: torch.device | str = "cpu") -> Detector:
    """The detector `name`, or `package.module:Class`, with the options that were given.

    Raises OptionError for an unknown name or option, ModelError for weights that are missing, damaged or others.
    """
    kind: type[Detector] = registry.load("detectors", name)
    return kind.open(given or {}, device)
