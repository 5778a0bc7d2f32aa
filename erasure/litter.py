"""Litter: temporary files and folders of processes that were killed while they wrote, removed by the next writer."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path


def sweep(path: Path) -> None:
    """Remove `.<name>.<pid>....tmp` beside `path` where no process of that number lives any more."""
    for stale in path.parent.glob(f".{_literal(path.name)}.*.tmp"):
        owner = re.match(re.escape(f".{path.name}.") + r"(\d+)\.", stale.name)
        if owner is None or _lives(int(owner[1])):
            continue
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def _literal(name: str) -> str:
    """`name` as a pattern that means itself."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
