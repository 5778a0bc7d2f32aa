"""How a message names an option: as a Python argument, or, while the command line runs, as a flag.

Messages are written with flags (`--num-images`). `worded` turns them into what the reader can type.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

# Arguments that are not called as their flags are.
ARGUMENTS = {"detect": "classes", "detector": "detectors"}
_COMMAND = r"`(?!--)[^`]*`"  # a whole command, such as `erasure mask --model <this model>`, stays as it is
_EXAMPLE = r"(?<=such as )--(?P<name>[a-z][\w-]*) (?P<value>[^\s,;:]+)"
_FLAG = r"(?P<tick>`?)(?<![\w/.-])--(?P<flag>[a-z][\w-]*)(?P=tick)"
_PATTERN = re.compile("|".join((_COMMAND, _EXAMPLE, _FLAG)))

_flags = False


@contextlib.contextmanager
def options_as_flags() -> Iterator[None]:
    """Let messages name options as flags; for the command line alone."""
    global _flags
    before, _flags = _flags, True
    try:
        yield
    finally:
        _flags = before


def worded(text: str) -> str:
    """`text`, written with flags, in the words of its reader.

    In Python `--num-images` becomes `num_images` in backticks, `--no-evaluate` becomes `evaluate=False`, and an example
    such as --forget 3 becomes `forget=3`.
    """
    return text if _flags else _PATTERN.sub(_argument, text)


def _argument(match: re.Match[str]) -> str:
    if match["flag"] is not None:
        name = match["flag"].replace("-", "_")
        name = ARGUMENTS.get(name, name)
        return f"`{name.removeprefix('no_')}=False`" if name.startswith("no_") else f"`{name}`"
    if match["name"] is not None:
        value = match["value"]
        shown = value if re.fullmatch(r"-?\d+(\.\d+)?", value) else repr(value)
        return f"`{match['name'].replace('-', '_')}={shown}`"
    return match[0]
