"""Flags from dataclass fields: `name: Annotated[type, "help"] = default` becomes `--name`, and back.

A value that was not given stays out, so that defaults of several origins (paper, family, model card, preset) can be
laid over each other in a known order.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from erasure.core.errors import OptionError, suggestion


def add_flags(parser: argparse._ActionsContainer, kind: Any, prefix_of: Mapping[str, str] | None = None) -> None:
    """Add one flag for each field of the dataclass `kind`; nothing is set when a flag is absent.

    `prefix_of` gives another flag to a field whose own name is taken. Raises OptionError for one that is taken still.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        base, text = _split(hints[field.name])
        if dataclasses.is_dataclass(base) or base is tuple:
            continue
        flag = "--" + (prefix_of or {}).get(field.name, field.name).replace("_", "-")
        text = f"{text}{_default_note(field)}".replace("%", "%%")
        try:
            parser.add_argument(flag, default=argparse.SUPPRESS, help=text, **_reader(base))
        except argparse.ArgumentError as error:
            raise OptionError(f"{kind.__name__}.{field.name}: {flag} is an option already: rename the field") from error


def _reader(base: Any) -> dict[str, Any]:
    """How argparse reads a value of the type `base`."""
    if base is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices = typing.get_args(base) if typing.get_origin(base) is Literal else None
    return {"type": str, "choices": choices} if choices else {"type": base, "metavar": base.__name__.upper()}


def given_flags(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are fields of the dataclass `kind`."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {key: value for key, value in values.items() if key in names}


def as_flags(values: Mapping[str, Any], prefix_of: Mapping[str, str] | None = None) -> str:
    """`values` as they would be given on the command line, with the flags that `add_flags` adds."""
    parts = []
    for name, value in values.items():
        flag = (prefix_of or {}).get(name, name).replace("_", "-")
        parts.append(f"--{flag} {value}" if not isinstance(value, bool) else f"--{'' if value else 'no-'}{flag}")
    return " ".join(parts)


def build(kind: Any, owner: str, *layers: Mapping[str, Any]) -> Any:
    """An instance of the dataclass `kind` from its defaults and `layers`, later ones first in rank.

    Raises OptionError for a name that is no field, with the nearest one that is, and for fields that have neither a
    value nor a default.
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


def _split(hint: Any) -> tuple[Any, str]:
    """The plain type of an annotation (None left out) and its help text."""
    text = ""
    if hasattr(hint, "__metadata__"):
        text, hint = str(hint.__metadata__[0]), hint.__origin__
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint, text


def _default_note(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING or field.default is None or field.default == "":
        return ""
    return f" (default {field.default})"


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
