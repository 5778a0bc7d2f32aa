"""A dataclass from layers of values: its defaults, those of a family, a model card, a preset, and what was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from erasure.core.errors import OptionError, suggestion


def build(kind: Any, owner: str, *layers: Mapping[str, Any]) -> Any:
    """Make an instance of the dataclass `kind` from its defaults and `layers`, of which later ones win.

    Raises OptionError, which begins with `owner`, for a name that is no field, with the nearest one that is, and for
    fields that have neither a value nor a default.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key not in names:
                raise OptionError(f"{owner} has no option {key!r}{suggestion(key, names)}")
            merged[key] = value
    missing = [field.name for field in dataclasses.fields(kind) if _is_required(field) and field.name not in merged]
    if missing:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise OptionError(f"{owner} needs a value for {flags}: there is no default")
    return kind(**merged)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
