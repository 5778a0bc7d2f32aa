"""Records: dataclasses that are written as JSON objects, and read back with one line for a wrong shape.

A field stands under its own name, or under the `key` of `stored`; tuples are JSON arrays, nested records objects.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from functools import cache
from typing import Any, Literal, Self

from erasure.core.errors import RunError

Facts = Mapping[str, Any]  # JSON values that are shown and compared, but never read by name


def stored(*, key: str | None = None, optional: bool = False) -> Any:
    """A dataclass field under another `key`; an `optional` one is None by default and then left out of the object."""
    return field(default=None if optional else MISSING, metadata={"key": key, "optional": optional})


class Record:
    """A base for dataclasses that are written to JSON files or printed by `--json`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields."""
        values = {_key(one): (one, getattr(self, one.name)) for one in _fields(type(self))}
        return {
            key: plain(value)
            for key, (one, value) in values.items()
            if value is not None or not one.metadata.get("optional")
        }

    @classmethod
    def from_dict(cls, values: object, what: str = "the record") -> Self:
        """The inverse of `to_dict`; raises RunError, which begins with `what`, for another shape."""
        try:
            return cls._read(values, "")
        except _WrongShapeError as error:
            raise RunError(f"{what}: {error}") from error

    @classmethod
    def _read(cls, values: object, place: str) -> Self:
        """An instance from the JSON object at `place` in a document."""
        found: Self = _record(cls, values, place)
        return found


def plain(value: Any) -> Any:
    """`value` with records as dictionaries and tuples as lists."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


class _WrongShapeError(Exception):
    """Where in a document, what stands there, what was expected."""

    def __init__(self, place: str, value: object, expected: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        super().__init__(f"{place or 'it'} is {shown}, expected {expected}")


class _MissingError(_WrongShapeError):
    def __init__(self, place: str, names: Sequence[str], relation: str) -> None:
        Exception.__init__(self, f"{place or 'it'} {relation} {', '.join(map(repr, names))}")


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)


def _key(one: Field[Any]) -> str:
    return str(one.metadata.get("key") or one.name)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: Any, value: object, place: str) -> Any:
    """An instance of the dataclass `kind`."""
    if not isinstance(value, Mapping):
        raise _WrongShapeError(place, value, "a JSON object")
    known = {_key(one): one for one in _fields(kind)}
    unknown = [str(name) for name in value if name not in known]
    if unknown:
        raise _MissingError(place, unknown, "has an unknown entry")
    absent = [key for key, one in known.items() if key not in value and _is_required(one)]
    if absent:
        raise _MissingError(place, absent, "has no")
    hints = _hints(kind)
    inside = {key: f"{place}.{key}" if place else key for key in known}
    return kind(
        **{one.name: _value(hints[one.name], value[key], inside[key]) for key, one in known.items() if key in value}
    )


def _is_required(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _value(hint: Any, value: Any, place: str) -> Any:
    """`value`, checked against a type hint."""
    if hint is Any:
        return value
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint._read(value, place)
    origin = typing.get_origin(hint)
    if origin is not None:
        return _READERS[origin](typing.get_args(hint), value, place)
    accepted, name = _PLAIN[hint]
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise _WrongShapeError(place, value, name)
    return value


def _union(hints: tuple[Any, ...], value: Any, place: str) -> Any:
    """`X | None`; of several other types the first that fits."""
    others = [hint for hint in hints if hint is not types.NoneType]
    if value is None and len(others) < len(hints):
        return None
    for hint in others[:-1]:
        try:
            return _value(hint, value, place)
        except _WrongShapeError:
            continue
    return _value(others[-1], value, place)


def _literal(choices: tuple[Any, ...], value: Any, place: str) -> Any:
    if value not in choices:
        raise _WrongShapeError(place, value, f"one of {', '.join(map(str, choices))}")
    return value


def _mapping(hints: tuple[Any, ...], value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _WrongShapeError(place, value, "a JSON object")
    return {str(key): _value(hints[1], part, f"{place}.{key}") for key, part in value.items()}


def _tuple(hints: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    return tuple(_items(hints, value, place))


def _items(hints: tuple[Any, ...], value: Any, place: str) -> list[Any]:
    """`tuple[X, ...]`, `list[X]`, or a tuple of a fixed length."""
    if not isinstance(value, list | tuple):
        raise _WrongShapeError(place, value, "an array")
    if hints[0] is float and hints[1:] in ((), (Ellipsis,)) and set(map(type, value)) <= {int, float}:
        return list(value)  # long lists of numbers without a call for each
    each = hints if len(hints) > 1 and hints[1] is not Ellipsis else (hints[0],) * len(value)
    if len(each) != len(value):
        raise _WrongShapeError(place, value, f"an array of {len(each)}")
    return [_value(hint, part, f"{place}[{i}]") for i, (hint, part) in enumerate(zip(each, value, strict=True))]


_READERS: dict[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    types.UnionType: _union,
    typing.Union: _union,
    Literal: _literal,
    Mapping: _mapping,
    dict: _mapping,
    tuple: _tuple,
    list: _items,
    Sequence: _tuple,
}
_PLAIN: dict[Any, tuple[Any, str]] = {
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
}
