"""Model families, and the one door to them: a shipped name, a folder, a single file, a run, or a hub id."""

from __future__ import annotations

from erasure.models.base import Examples, Model
from erasure.models.diffusion import DiffusionModel
from erasure.models.loading import load_family, load_model, located, resolve, shipped_folder, shipped_names

__all__ = [
    "DiffusionModel",
    "Examples",
    "Model",
    "load_family",
    "load_model",
    "located",
    "resolve",
    "shipped_folder",
    "shipped_names",
]
