"""Unfinished work on disk: the tensors of a computation after some of its steps, from which a killed run continues.

One safetensors file, whose header says after how many steps, and of which settings (their fingerprint).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from erasure.core.errors import RunError
from erasure.formats.safetensors_io import read_tensors, write_tensors


def keep(path: Path, tensors: Mapping[str, Tensor], step: int, fingerprint: str) -> None:
    """Write the state after `step` steps, atomically, in place of an earlier one."""
    write_tensors(path, tensors, {"step": str(step), "fingerprint": fingerprint})


def restored(path: Path | None, fingerprint: str) -> tuple[dict[str, Tensor], int]:
    """The tensors that were kept, and after how many steps; none, and 0, where there is no file.

    Raises RunError when they were kept under other settings, ModelError when the file is damaged.
    """
    if path is None or not path.is_file():
        return {}, 0
    tensors, header = read_tensors(path)
    if header.get("fingerprint") != fingerprint or not header.get("step", "").isdecimal():
        raise RunError(f"{path} is unfinished work of other settings: remove it, or give another --out")
    return tensors, int(header["step"])
