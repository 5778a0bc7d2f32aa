"""log.jsonl of an exact service: what was trained from which ids, what was asked, what was removed; never rewritten.

Each line carries the SHA-256 of the line before it, so a line that was changed, dropped or moved afterwards shows. Who
can write the folder can also write all of it anew: a log is evidence as far as it, or its last hash, is kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from erasure.core.files import writing


class HashLog:
    """An append-only log; a last line that a kill cut short is dropped by the next append."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **facts: Any) -> None:
        """Write one record and wait until it is on disk."""
        with writing(self.path), open(self.path, "ab+") as handle:
            handle.seek(0)
            whole, _, _ = handle.read().rpartition(b"\n")
            handle.truncate(len(whole) + 1 if whole else 0)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            previous = _digest(whole.rpartition(b"\n")[2]) if whole else ""
            record = {"event": event, "time": now, **facts, "previous": previous}
            handle.write(json.dumps(record).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())

    def records(self, event: str = "") -> list[dict[str, Any]]:
        """All whole records, or those of one `event`; a line that is no record is left to `broken`."""
        return [record for _, record in self._lines() if record and event in ("", record.get("event"))]

    def states(self) -> dict[str, dict[str, Any]]:
        """The last record of each state that was ever saved, by its name."""
        return {record["state"]: record for record in self.records("state") if "state" in record}

    @property
    def head(self) -> str:
        """SHA-256 of the last line, which stands for the whole log; empty without lines."""
        return next((_digest(line) for line in reversed(self._raw())), "")

    def broken(self) -> str:
        """Where the chain of hashes breaks, in words; empty when it is whole."""
        previous = ""
        for number, (line, record) in enumerate(self._lines(), start=1):
            if record is None:
                return f"line {number} is no record"
            if record.get("previous") != previous:
                return f"line {number} does not follow the line before it"
            previous = _digest(line)
        return ""

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        for line in self._raw():
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield line, record if isinstance(record, dict) else None

    def _raw(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
