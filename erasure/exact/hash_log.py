"""log.jsonl of an exact service: states that were trained, requests, removed files; lines are only appended.

Each line carries the SHA-256 of the line before it, so a line that was changed, dropped or moved later is detected.
Whoever can write the folder can also write the whole log again: it is evidence only if a copy of it, or of its last
hash, is kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from erasure.core.errors import RunError
from erasure.core.files import writing
from erasure.core.records import Record


@dataclass(frozen=True)
class FitEvent(Record):
    """The start of a fit: hashes of the plan and of the data."""

    plan: str
    data: str


@dataclass(frozen=True)
class StateEvent(Record):
    """A trained state: its name and hash, the hash and number of the ids it saw, and its parent's hash."""

    state: str
    hash: str
    ids: str
    num_ids: int
    parent: str | None


@dataclass(frozen=True)
class RequestEvent(Record):
    """The start of a request to forget `ids`, and its number from 1."""

    request: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ForgottenEvent(Record):
    """The end of a request: the files that were removed, and the hash of the live states."""

    request: int
    removed: tuple[str, ...]
    live: str


Event = FitEvent | StateEvent | RequestEvent | ForgottenEvent
EVENTS: dict[str, type[Event]] = {
    "fit": FitEvent,
    "state": StateEvent,
    "request": RequestEvent,
    "forgotten": ForgottenEvent,
}
NAMES = {kind: name for name, kind in EVENTS.items()}
E = TypeVar("E", FitEvent, StateEvent, RequestEvent, ForgottenEvent)


@dataclass(frozen=True)
class LogLine:
    """One line: the event, when it was written, and the hash of the line before."""

    event: Event
    time: str
    previous: str

    def encoded(self) -> bytes:
        """The line as it is written, without its end."""
        record = {"event": NAMES[type(self.event)], "time": self.time, **self.event.to_dict()}
        return json.dumps({**record, "previous": self.previous}).encode()

    @staticmethod
    def decoded(line: bytes) -> LogLine | None:
        """The inverse of `encoded`; None for anything else."""
        try:
            facts = dict(json.loads(line))
            kind = EVENTS[facts.pop("event")]
            time, previous = str(facts.pop("time")), str(facts.pop("previous"))
            return LogLine(kind.from_dict(facts, "the line"), time, previous)
        except (ValueError, TypeError, KeyError, RunError):
            return None


class HashLog:
    """An append-only log. A last line that a kill cut short is dropped by the next append."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Write one event and wait until it is on disk."""
        with writing(self.path), open(self.path, "ab+") as handle:
            handle.seek(0)
            whole, _, _ = handle.read().rpartition(b"\n")
            handle.truncate(len(whole) + 1 if whole else 0)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            previous = _digest(whole.rpartition(b"\n")[2]) if whole else ""
            handle.write(LogLine(event, now, previous).encoded() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())

    def events(self, kind: type[E]) -> list[E]:
        """All events of one kind. A line that cannot be read is left out; `broken` reports it."""
        return [line.event for _, line in self._lines() if line is not None and isinstance(line.event, kind)]

    def states(self) -> dict[str, StateEvent]:
        """The last event of each state that was ever saved, by its name."""
        return {event.state: event for event in self.events(StateEvent)}

    @property
    def head(self) -> str:
        """SHA-256 of the last line, which depends on the whole log; empty for an empty log."""
        return next((_digest(line) for line in reversed(self._raw())), "")

    def broken(self) -> str:
        """Where the chain of hashes breaks, in words; empty when the log is whole."""
        previous = ""
        for number, (raw, line) in enumerate(self._lines(), start=1):
            if line is None:
                return f"line {number} is not a log entry"
            if line.previous != previous:
                return f"line {number} does not follow the line before it"
            previous = _digest(raw)
        return ""

    def _lines(self) -> Iterator[tuple[bytes, LogLine | None]]:
        for raw in self._raw():
            yield raw, LogLine.decoded(raw)

    def _raw(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
