"""Room on the disk: what a long command will write is said to be too much before it starts, not in the middle."""

from __future__ import annotations

import shutil
from pathlib import Path

from erasure.errors import OutputError
from erasure.run import writing


def require_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Raise OutputError when fewer than `needed` bytes are free where `folder` is, or will be."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{what} takes up to {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free: {remedy}"
        )
