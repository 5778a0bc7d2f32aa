"""Plug-ins by file name: listing reads the first line of each file, loading imports the chosen module alone.

A file below a plug-in folder is a plug-in when its docstring begins with its own name and a colon (`salun: ...`); every
other file there is shared code. A third party names `package.module:Class` or `my_file.py:Class` wherever a plug-in's
name is expected; both are found from the current folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
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
OPTIONS_ARE_FIELDS = ("methods", "exact")  # kinds whose classes are dataclasses
FROM_FILE = "erasure_plugin_"  # begins the name of a module that was read from a file
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


def name_of(kind: str, found: type) -> str:
    """The name by which `load` gives the class `found`."""
    for name in names(kind):
        if module_name(kind, name) == found.__module__:
            return name
    place = found.__module__
    if place.startswith(FROM_FILE):
        place = bytes.fromhex(place.removeprefix(FROM_FILE)).decode()
    return f"{place}:{found.__qualname__}"


def load(kind: str, name: str) -> Any:
    """The public class of the plug-in `name`, or of `package.module:Class`, or of `file.py:Class`.

    Raises OptionError for an unknown name, with the nearest one that exists, and for a class of a third party that
    cannot be imported or is not of this kind.
    """
    if ":" in name:
        return _foreign(kind, name)
    if name not in names(kind):
        if name.endswith(".py"):
            raise OptionError(f"{_singular(kind)} {name!r} does not say which class of the file: write {name}:Class")
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
    except (Exception, SystemExit) as error:  # a third party's file can fail in any way
        raise OptionError(f"{what} cannot be imported: {_cause(error)}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        known = [value.__name__ for value in _public_classes(module)]
        raise OptionError(f"{what}: {place} defines no class {class_name!r}{suggestion(class_name, known)}")
    _check_base(found, kind, what)
    return found


def _check_base(found: Any, kind: str, what: str) -> None:
    """Raise OptionError unless the class `found` is one of `kind`, with all that such a class must define."""
    home, _, base_name = HOMES[kind][1].partition(":")
    if home and not issubclass(found, getattr(importlib.import_module(home), base_name)):
        raise OptionError(f"{what} must be a subclass of {home}.{base_name}")
    if inspect.isabstract(found):
        raise OptionError(f"{what} does not define {', '.join(sorted(found.__abstractmethods__))}")
    own = vars(found)
    if (
        kind in OPTIONS_ARE_FIELDS
        and "__dataclass_fields__" not in own
        and {"__annotations__", "__init__"} & own.keys()
    ):
        raise OptionError(f"{what} must be a dataclass: write @dataclass(frozen=True, kw_only=True) above the class")


def _cause(error: BaseException) -> str:
    """The exception in one line, with the line of the file that raised it."""
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return " ".join((text + place).split())


def _is_foreign(filename: str) -> bool:
    return not filename.startswith("<") and not Path(filename).is_relative_to(PACKAGE)


def _from_current_folder(dotted: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(dotted)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    dotted = FROM_FILE + path.resolve().as_posix().encode().hex()
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
