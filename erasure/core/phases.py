"""Phases: what a long command does one after the other, and the seconds each of them took."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

_logger = logging.getLogger("erasure")


class Phases:
    """Seconds by the name of a phase, in the order in which the phases began; a name that comes twice adds up."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(seconds or {})

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the seconds of the block under `name`."""
        _logger.debug("%s: begins", name)
        self.seconds.setdefault(name, 0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] += spent
            _logger.debug("%s: %.1f s", name, spent)

    def as_text(self) -> str:
        """`load 1.2 s, mask 3.4 s, ...`."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
