"""The ledger of an audit: one JSON line for each planned image, appended by as many processes as there are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from erasure.run import atomic_path, read_log


class Ledger:
    """The records of one side: a part for each process while it runs, `<name>.jsonl` in order when it is done."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path = folder / f"{name}.jsonl"

    @property
    def parts(self) -> list[Path]:
        """What processes have written since it was last joined."""
        return sorted(self.folder.glob(f"{self.name}.part-*.jsonl"))

    def part(self, process: int) -> Path:
        """The file of one process."""
        return self.folder / f"{self.name}.part-{process}.jsonl"

    def keys(self) -> set[tuple[str, int]]:
        """Which trials have a record; where an image was there and a detector failed, it is tried anew."""
        found: set[tuple[str, int]] = set()
        for path in (*self.parts, self.path):
            found |= {(one["row"], one["image"]) for one in read_log(path) if not {"failed", "sha256"} <= set(one)}
        return found

    def merge(self, order: Iterable[tuple[str, int]]) -> None:
        """Join the parts into one file, in the order of the keys, and drop them."""
        lines: dict[tuple[str, int], str] = {}
        for path in (self.path, *self.parts):
            lines |= {(record["row"], record["image"]): json.dumps(record) for record in read_log(path)}
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
            handle.writelines(lines[key] + "\n" for key in order)
        for path in self.parts:
            path.unlink()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The records of a finished side, one at a time."""
        with open(self.path, encoding="utf-8") as handle:
            for line in handle:
                yield json.loads(line)
