"""Plug-ins by file name: listing reads the first line of each file, loading imports the chosen module alone.

A file below a plug-in folder is a plug-in when its docstring begins with its own name and a colon (`salun: ...`); every
other file there is shared code. A third party names `package.module:Class` or `my_file.py:Class` wherever a plug-in's
name is expected; both are found from the current folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from erasure.core.errors import OptionError, suggestion

PACKAGE = Path(__file__).parent.parent
# Where the plug-ins of a kind are, and what each of them is a subclass of.
HOMES = {
    "methods": ("methods", "erasure.methods.base:Method"),
    "metrics": ("evaluation/metrics", "erasure.evaluation.metrics.base:Metric"),
    "models": ("models", "erasure.models.base:Model"),
    "data": ("data", ""),
    "detectors": ("auditing/detectors", "erasure.auditing.detectors.base:Detector"),
    "exact": ("exact", "erasure.exact.base:ExactMethod"),
}
LISTED = ("methods", "metrics", "models", "data", "detectors")  # kinds that `erasure list` shows
SINGULAR = {"data": "data set", "exact": "exact method"}


@cache
def _paths(kind: str) -> dict[str, Path]:
    """The file of each plug-in of a kind, by name, in alphabetical order."""
    found = (PACKAGE / HOMES[kind][0]).rglob("*.py")
    return {path.stem: path for path in sorted(found, key=lambda path: path.stem) if _first_line(path)}


def _first_line(path: Path) -> str:
    """The first line of a plug-in's docstring, empty for a file of shared code."""
    with open(path, encoding="utf-8") as handle:
        line = handle.readline().strip().removeprefix('"""').removesuffix('"""')
    return line if line.startswith(f"{path.stem}: ") else ""


def names(kind: str) -> tuple[str, ...]:
    """The plug-ins of one kind (a key of HOMES), in alphabetical order."""
    return tuple(_paths(kind))


def summary(kind: str, name: str) -> str:
    """The first line of the plug-in's docstring, read without importing it."""
    return _first_line(_paths(kind)[name])


def module_name(kind: str, name: str) -> str:
    """The dotted name of the module of a plug-in."""
    return ".".join(("erasure", *_paths(kind)[name].relative_to(PACKAGE).with_suffix("").parts))


def load(kind: str, name: str) -> Any:
    """The public class of the plug-in `name`, or of `package.module:Class`, or of `file.py:Class`.

    Raises OptionError for an unknown name, with the nearest one that exists, and for a class of a third party that
    cannot be imported or is not of this kind.
    """
    if ":" in name:
        return _foreign(kind, name)
    if name not in names(kind):
        raise OptionError(f"unknown {_singular(kind)} {name!r}{suggestion(name, names(kind))}")
    module = importlib.import_module(module_name(kind, name))
    classes = list(_public_classes(module))
    if len(classes) != 1:
        raise OptionError(f"{_paths(kind)[name]} must define exactly one public class, it defines {len(classes)}")
    return classes[0]


def _public_classes(module: ModuleType) -> Iterator[type]:
    for key, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__ and not key.startswith("_"):
            yield value


def _foreign(kind: str, name: str) -> Any:
    place, _, class_name = name.rpartition(":")
    what = f"{_singular(kind)} {name!r}"
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_current_folder(place)
    except Exception as error:  # a third party's file can fail in any way, and says which
        raise OptionError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        known = [value.__name__ for value in _public_classes(module)]
        raise OptionError(f"{what}: {place} defines no class {class_name!r}{suggestion(class_name, known)}")
    base = HOMES[kind][1]
    if base:
        home, _, base_name = base.partition(":")
        if not issubclass(found, getattr(importlib.import_module(home), base_name)):
            raise OptionError(f"{what} must be a subclass of {home}.{base_name}")
    return found


def _from_current_folder(dotted: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(dotted)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    dotted = f"erasure_plugin_{path.resolve().as_posix().encode().hex()}"
    if dotted in sys.modules:
        return sys.modules[dotted]
    spec = importlib.util.spec_from_file_location(dotted, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[dotted] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[dotted]
        raise
    return module


def _singular(kind: str) -> str:
    return SINGULAR.get(kind, kind.removesuffix("s"))
