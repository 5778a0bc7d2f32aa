"""erasure: erase a class, an object, a style or a concept from a model, ship the cleaned weights, prove what was done.

Names are imported when they are first used; importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Classifier": "erasure.models.classifier",
    "DDPM": "erasure.models.ddpm",
    "ErasureError": "erasure.core.errors",
    "ModelOutputs": "erasure.evaluation.outputs",
    "EvaluationConfig": "erasure.evaluation.settings",
    "Mask": "erasure.saliency.mask",
    "EraseRequest": "erasure.erasing.erase",
    "SaliencyConfig": "erasure.saliency.scores",
    "SamplingOptions": "erasure.sampling.draw",
    "Task": "erasure.data.task",
    "load_dataset": "erasure.data",
    "load_model": "erasure.models",
    "saliency_scores": "erasure.saliency.scores",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'erasure' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
