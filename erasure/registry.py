"""Plug-in folders: a file is a name. Listing reads no code; loading imports the chosen module alone.

A third party names `their_package.module:Class` wherever a plug-in's name is expected.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any

from erasure.errors import OptionError, suggestion

FOLDERS = ("methods", "metrics", "models", "data", "detectors")


@cache
def names(folder: str) -> tuple[str, ...]:
    """The plug-ins of one folder, by file name; files that begin with an underscore are machinery."""
    root = Path(__file__).parent / folder
    return tuple(sorted(path.stem for path in root.glob("*.py") if not path.stem.startswith("_")))


def summary(folder: str, name: str) -> str:
    """The first line of the plug-in's docstring, read without importing it."""
    tree = ast.parse((Path(__file__).parent / folder / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n", 1)[0]


def load(folder: str, name: str) -> Any:
    """The one public class of the plug-in `name`, or of `package.module:Class`.

    Raises OptionError for a name that is not in the folder, with the nearest one that is.
    """
    if ":" in name:
        return _foreign(folder, name)
    if name not in names(folder):
        raise OptionError(f"unknown {_singular(folder)} {name!r}{suggestion(name, names(folder))}")
    module = importlib.import_module(f"erasure.{folder}.{name}")
    classes = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    if len(classes) != 1:
        raise OptionError(f"erasure/{folder}/{name}.py must define exactly one public class, it defines {len(classes)}")
    return classes[0]


def _foreign(folder: str, name: str) -> Any:
    module_name, _, class_name = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"{_singular(folder)} {name!r} cannot be imported: {error}") from error


def _singular(folder: str) -> str:
    return {"data": "data set"}.get(folder, folder.removesuffix("s"))
