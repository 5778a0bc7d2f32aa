"""What a long command tells on the way: notes and warnings of the logger "erasure", and progress bars.

A notebook sees warnings, as with any logger; the command line alone decides what else is shown.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator
from typing import Any, Literal

from erasure.core.distributed import is_main
from erasure.core.option_names import worded

Level = Literal["quiet", "normal", "verbose"]

_LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}
_logger = logging.getLogger("erasure")
_bars = True


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the time, one line a record."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        prefix = self.prefix if record.levelno >= logging.WARNING else ""
        sys.stderr.write(f"{prefix}{record.getMessage()}\n")


def log_user(text: str) -> None:
    """Log a note of one line at level INFO. Of several processes only the main one logs."""
    _log(logging.INFO, text)


@functools.cache
def log_user_once(text: str) -> None:
    """Log a note that a command may come to log several times, the first time only."""
    log_user(text)


def log_warning(text: str) -> None:
    """Log, at level WARNING, one line about something that the user probably did not want."""
    _log(logging.WARNING, text)


@functools.cache
def log_warning_once(text: str) -> None:
    """Log a warning that a command may come to log several times, the first time only."""
    log_warning(text)


def log_debug(text: str) -> None:
    """Log, at level DEBUG, one line that helps to find the cause of a surprise."""
    _log(logging.DEBUG, text)


def _log(level: int, text: str) -> None:
    if is_main():
        _logger.log(level, "%s", worded(text))


def progress(*items: Any, **options: Any) -> Any:
    """A tqdm bar with tqdm's arguments: shown on a terminal and in a notebook, removed when it is full."""
    from tqdm.auto import tqdm

    # tqdm itself hides a bar whose output is no terminal, and a notebook's is none.
    in_notebook = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)
    hidden = (False if in_notebook else None) if _bars else True
    return tqdm(*items, disable=hidden, leave=False, **options)


@contextlib.contextmanager
def shown(level: Level, prefix: str) -> Iterator[None]:
    """Send what is logged to stderr, one line each, warnings after `prefix`; for the command line alone.

    quiet: warnings, no progress bars; normal: notes too; verbose: everything.
    """
    global _bars
    before = (_logger.level, _logger.propagate, _bars)
    handler = _Stderr(prefix)
    _logger.addHandler(handler)
    _logger.setLevel(_LEVELS[level])
    _logger.propagate, _bars = False, level != "quiet"
    try:
        yield
    finally:
        _logger.removeHandler(handler)
        _logger.setLevel(before[0])
        _logger.propagate, _bars = before[1:]
