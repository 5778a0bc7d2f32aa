"""Notes: what a long command tells its user on the way. The library says it; only the command line shows it."""

from __future__ import annotations

import functools
import logging
import sys

from erasure.core.distributed import is_main

_logger = logging.getLogger("erasure")


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(record.getMessage() + "\n")


def log_user(text: str) -> None:
    """Say one line; it is lost unless somebody listens (`show`, or any handler of the logger "erasure").

    Of several processes only the main one says it.
    """
    if is_main():
        _logger.info(text)


@functools.cache
def log_user_once(text: str) -> None:
    """Say one line that a command may come to say several times, the first time only."""
    log_user(text)


def show() -> None:
    """Send what is told to stderr, one line each; called by the command line alone."""
    if not _logger.handlers:
        _logger.addHandler(_Stderr())
        _logger.setLevel(logging.INFO)
        _logger.propagate = False
