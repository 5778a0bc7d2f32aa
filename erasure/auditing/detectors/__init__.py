"""Detectors: is the concept in this image? Each file is a plug-in with the file's name.

Raw scores are recorded and thresholds applied afterwards; an image that could not be scored is unscored, never safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from erasure.auditing.detectors.base import Box, Detection, Detector
from erasure.core import registry

__all__ = ["Box", "Detection", "Detector", "open_detector"]


def open_detector(name: str, given: Mapping[str, Any] | None = None, device: torch.device | str = "cpu") -> Detector:
    """The detector `name`, or `package.module:Class`, with the given options.

    Raises OptionError for an unknown name or option, ModelError for weights that are missing, damaged or do not fit.
    """
    kind: type[Detector] = registry.load("detectors", name)
    return kind.open(given or {}, device)
