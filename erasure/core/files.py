"""Files: atomic writes of files and folders, JSON, locks, free disk space, and what killed writers left behind.

A killed process leaves either the old file or the new one, never a part; its temporary files are removed by the next
writer of the same file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from erasure.core.errors import ErasureError, OutputError, RunError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any error while `path` is written (disk full, no permission) into one OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; nothing was replaced") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise OutputError(f"cannot write {path}: {error}; nothing was replaced") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends, and vanishes when it fails."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends, and vanishes when it fails."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.{os.getpid()}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            for entry in [temporary, *temporary.rglob("*")]:
                entry.chmod(0o755 if entry.is_dir() else 0o644)
            aside = temporary.with_suffix(".old.tmp")
            if path.exists():
                os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, indented, with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str | bytes, source: object, error: type[ErasureError] = RunError) -> Any:
    """Parse any JSON value; raises `error`, naming `source`, when it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as broken:
        raise error(f"{source} is not readable JSON: {broken}") from broken


def parse_object(text: str | bytes, source: object, error: type[ErasureError] = RunError) -> dict[str, Any]:
    """Parse a JSON object; raises `error`, naming `source`, for anything else."""
    value = parse_json(text, source, error)
    if not isinstance(value, dict):
        raise error(f"{source} is not a JSON object")
    return value


def read_json(path: Path, error: type[ErasureError] = RunError) -> dict[str, Any]:
    """Read a JSON object from a file; raises `error` when it is missing, unreadable, or not an object."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as missing:
        raise error(f"{path} does not exist") from missing
    except (OSError, ValueError) as broken:
        raise error(f"{path} is not readable JSON: {broken}") from broken
    return parse_object(text, path, error)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one JSON object a line; a last line that a kill cut short is left out.

    Raises RunError for any other line that is none.
    """
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.endswith(b"\n"):
                yield parse_object(line, f"{path}, line {number}")
            else:
                with contextlib.suppress(RunError):
                    yield parse_object(line, path)


def held(path: Path, what: Path, *, wait: bool = False) -> FileLock:
    """Lock the file `path` for this process until it is released.

    While another process has the lock, wait for it with `wait`, or else raise RunError.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise RunError(f"{what} is in use by another process: wait for it or give another --out") from None
    return lock


def require_disk_space(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Raise OutputError when fewer than `needed` bytes are free where `folder` is, or will be."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{what} takes up to {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free: {remedy}"
        )


def sweep(path: Path) -> None:
    """Remove `.<name>.<pid>....tmp` beside `path` whose process has ended."""
    for stale in path.parent.glob(f".{_literal(path.name)}.*.tmp"):
        owner = re.match(re.escape(f".{path.name}.") + r"(\d+)\.", stale.name)
        if owner is None or _lives(int(owner[1])):
            continue
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def _literal(name: str) -> str:
    """`name` as a glob pattern that matches itself alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
