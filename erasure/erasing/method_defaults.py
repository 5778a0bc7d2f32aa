"""Defaults of a method that hold for a family of models, or for one shipped model, in place of those of its fields."""

from __future__ import annotations

import json
from typing import Any

from erasure.core import registry
from erasure.core.errors import ModelError
from erasure.core.files import read_json
from erasure.models import shipped_folder, shipped_names


def defaults_by_family(method: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """The families that have defaults of their own for `method`, grouped by these; `saliency` holds the mask's."""
    groups: dict[str, list[str]] = {}
    kind = registry.load("methods", method)
    for family, values in kind.defaults_of.items():
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(family)
    return {tuple(families): kind.defaults_of[families[0]] for families in groups.values()}


def defaults_by_shipped_model(method: str) -> dict[str, dict[str, Any]]:
    """The shipped models whose cards have defaults of their own for `method`."""
    found = {}
    for name in shipped_names():
        path = shipped_folder() / name / "erase.json"
        card = read_json(path, ModelError) if path.is_file() else {}
        if method in card:
            found[name] = {**card.get("training_images", {}), **card[method]}
    return found
