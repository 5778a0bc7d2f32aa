"""erasure: erase a class, an object, a style or a concept from a model, ship the cleaned weights, prove what was done.

The verbs are functions (`erase`, `evaluate`, `audit`, ...), what is forgotten is a Concept, Classes or Samples, and
`erasure.methods` has a class for each method. Names are imported when they are first used; importing this package
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasure import exact as exact
    from erasure import methods as methods
    from erasure.api import Classes as Classes
    from erasure.api import Run as Run
    from erasure.api import Samples as Samples
    from erasure.api import audit as audit
    from erasure.api import compare as compare
    from erasure.api import erase as erase
    from erasure.api import evaluate as evaluate
    from erasure.api import export as export
    from erasure.api import generate as generate
    from erasure.api import load as load
    from erasure.api import saliency_mask as saliency_mask
    from erasure.api import verify as verify
    from erasure.auditing import detectors as detectors
    from erasure.core.errors import ErasureError as ErasureError
    from erasure.data.loading import load_dataset as load_dataset
    from erasure.models.base import Model as Model
    from erasure.prompts.concept import Concept as Concept
    from erasure.prompts.prompt_set import PromptSet as PromptSet
    from erasure.saliency.mask import Mask as Mask

    __version__: str

_HOMES = {
    "Classes": "erasure.api",
    "Concept": "erasure.prompts.concept",
    "ErasureError": "erasure.core.errors",
    "Mask": "erasure.saliency.mask",
    "Model": "erasure.models.base",
    "PromptSet": "erasure.prompts.prompt_set",
    "Run": "erasure.api",
    "Samples": "erasure.api",
    "audit": "erasure.api",
    "compare": "erasure.api",
    "erase": "erasure.api",
    "evaluate": "erasure.api",
    "export": "erasure.api",
    "generate": "erasure.api",
    "load": "erasure.api",
    "load_dataset": "erasure.data.loading",
    "saliency_mask": "erasure.api",
    "verify": "erasure.api",
}
_PACKAGES = {"detectors": "erasure.auditing.detectors", "exact": "erasure.exact", "methods": "erasure.methods"}

__all__ = sorted([*_HOMES, *_PACKAGES])  # a test holds it against the static names above


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(_PACKAGES[name])
    if name == "__version__":
        from importlib.metadata import version

        return version("erasure")
    raise AttributeError(f"module 'erasure' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
