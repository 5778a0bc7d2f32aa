"""The run folder: run.json, log.jsonl, results. Atomic writes, one writer at a time, resume by fingerprint.

A folder belongs to the first run that opens it. The same settings continue or return it; other settings are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from erasure.core.distributed import is_main
from erasure.core.errors import ErasureError, RunError
from erasure.core.files import held, json_lines, read_json, write_json, write_text, writing

SCHEMA = 1
PACKAGES = ("erasure", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "scikit-learn")


class Trained(TypedDict, total=False):
    """What training did: seconds, steps, peak memory in bytes, and how the weights changed."""

    seconds: float
    mask_seconds: float
    steps: int
    peak_memory: int
    moves: str
    hash: str
    part_hash: str
    base_part_hash: str
    changed_weights: int
    total_weights: int
    relative_change: float


class Diverged(TypedDict):
    """The step of the last good weights (0: none were kept), and why training stopped."""

    step: int
    reason: str


class RunRecord(TypedDict, total=False):
    """The run.json of a verb: what was asked, by which versions, and what came out; verbs differ in what they add."""

    schema: int
    verb: str
    status: Literal["running", "done", "diverged"]
    fingerprint: str
    command: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    started: str
    finished: str
    device: str
    result: dict[str, Any]
    threads: int
    num_weights: int
    mask_seconds: float
    mask_density: float
    trained: Trained
    diverged: Diverged
    phases: dict[str, float]
    seconds: float  # spent on the images of an audit
    made: int  # images of an audit that were scored
    keep_images: bool


def read_record(path: Path) -> RunRecord:
    """Read a run.json; raises RunError when it is missing or is not the record of a run."""
    document = read_json(path)
    if not {"verb", "status", "settings"} <= set(document) or not isinstance(document["settings"], dict):
        raise RunError(f"{path} is not the record of a run")
    return cast(RunRecord, document)


def fingerprint(settings: Mapping[str, object]) -> str:
    """SHA-256 of the settings in canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where samples of unchanged models are kept between runs: $ERASURE_CACHE, or erasure/ in the user's cache."""
    root = os.environ.get("ERASURE_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erasure"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class RunDir:
    """One verb's output folder, held by one process; close it, or use it as a context manager.

    `done` says that the folder already holds the finished result of exactly these settings, in `result`. Of several
    processes only the main one locks and writes; the others get its `document` from distributed.agreed.
    """

    def __init__(
        self, folder: str | Path, verb: str, settings: Mapping[str, object], *, must_exist: bool = False
    ) -> None:
        """Open `folder` for `verb` with `settings` (plain JSON values).

        Raises RunError when it holds another run, files of another kind, or is held by another process, and, with
        `must_exist`, when it holds no run to resume.
        """
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self.fingerprint = fingerprint(self.settings)
        self.document: RunRecord = {"status": "running", "settings": self.settings}
        if not is_main():
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = held(self.folder / ".lock", self.folder)
        try:
            self.document = self._claim(verb, must_exist)
        except BaseException:
            self.close()
            raise

    def _claim(self, verb: str, must_exist: bool) -> RunRecord:
        path = self.folder / "run.json"
        if path.exists():
            found = read_record(path)
            self._check_same(found, verb)
            with writing(self.folder):
                for stale in self.folder.rglob(".*.tmp"):  # what this very run was writing when it was killed
                    shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            return found
        if must_exist:
            raise RunError(f"{self.folder} holds no run to resume: drop --resume to begin one")
        foreign = [entry.name for entry in self.folder.iterdir() if not entry.name.startswith(".")]
        if foreign:
            raise RunError(f"{self.folder} is not empty and holds no run ({foreign[0]}): give another --out")
        document: RunRecord = {
            "schema": SCHEMA,
            "verb": verb,
            "status": "running",
            "fingerprint": self.fingerprint,
            "command": ["erasure", *sys.argv[1:]],
            "settings": self.settings,
            "versions": versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(path, document)
        return document

    def _check_same(self, document: Mapping[str, Any], verb: str) -> None:
        if document.get("verb") == verb and document.get("fingerprint") == self.fingerprint:
            return
        if document.get("verb") != verb:
            difference = f"made by `erasure {document.get('verb')}`"
        else:
            difference = "; ".join(differences(document.get("settings", {}), self.settings)[:3])
        raise RunError(
            f"{self.folder} holds another run ({difference}): give another --out, or the same settings to resume"
        )

    @property
    def done(self) -> bool:
        """Whether the folder already holds the finished result of these settings."""
        return self.document["status"] == "done"

    @property
    def result(self) -> dict[str, Any]:
        """The result that `finish` recorded."""
        return self.document["result"]

    def update(self, **values: Any) -> None:
        """Record further facts (device, hashes, notes) in run.json."""
        self.document.update(cast(RunRecord, values))
        if is_main():
            write_json(self.folder / "run.json", self.document)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Record the result and mark the run as done."""
        self.update(status="done", result=dict(result), finished=datetime.now(UTC).isoformat(timespec="seconds"))

    def close(self) -> None:
        """Let other processes have the folder."""
        if is_main():
            self._lock.release()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, ErasureError) and is_main():
            self._withdraw()
        self.close()

    def _withdraw(self) -> None:
        """Leave no claim on a folder in which nothing was made before the error."""
        made = [entry.name for entry in self.folder.iterdir() if entry.name not in ("run.json", ".lock")]
        if not made and self.document.get("status") == "running":
            (self.folder / "run.json").unlink(missing_ok=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: old there, new now` for every setting that is not the same, nested ones with dotted names."""
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {before} there, {after} now")
    return found


class Log:
    """log.jsonl: one JSON object a line. It begins with `kept`, the records of an earlier part of the same run."""

    def __init__(self, path: Path, kept: Sequence[Mapping[str, Any]]) -> None:
        self.path = path
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        with writing(path):
            self._handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it."""
        with writing(self.path):
            self._handle.write(json.dumps(dict(record)) + "\n")
            self._handle.flush()

    def close(self) -> None:
        """Close the file; every record was flushed when it was written."""
        with contextlib.suppress(OSError):
            self._handle.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, as `json_lines` reads them; none without a file."""
    return list(json_lines(path)) if path.exists() else []
