"""Weights on disk and their identity: safetensors in, safetensors out, one hash for a set of tensors."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from erasure.core.errors import ModelError
from erasure.core.files import atomic_path, parse_object


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file and its metadata; raises ModelError if it is missing, truncated or a pickle."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist: expected a safetensors file")
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({reason(path, error)})") from error


def reason(path: Path, error: Exception) -> str:
    """Why a file is no safetensors: names a pickle as what it is."""
    with open(path, "rb") as handle:
        head = handle.read(4)
    if head[:2] == b"\x80\x02" or head == b"PK\x03\x04":
        return "it is a pickle, which can run code: convert it to safetensors first"
    return f"truncated or damaged: {error}"


def read_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a foreign .pt/.pth/.ckpt file, the only thing its loader admits: no code of it runs."""
    loaded = _unpickled(path)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{path} is not a flat dictionary of tensors")
    return loaded


def read_pickled_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a training checkpoint: under `state_dict`, or at the top; counters and the like are left out.

    They are mapped from the file where its format allows, not read. Raises ModelError when there are none.
    """
    with torch.serialization.safe_globals([(_Inert, name) for name in LIGHTNING]):
        loaded = _unpickled(path, mmap=zipfile.is_zipfile(path))
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    found = {
        name: value for name, value in (state or {}).items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not found:
        raise ModelError(f"{path} holds no dictionary of tensors: expected a model checkpoint")
    return found


# Classes that the published checkpoints of Stable Diffusion name as keys of their training records.
LIGHTNING = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)


class _Inert:
    """Stands for such a class: it is never called and can do nothing."""


def _unpickled(path: Path, mmap: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)  # noqa: TID251 (the one place)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except Exception as error:
        raise ModelError(
            f"{path} holds something other than tensors and was not loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:160]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(ready, temporary, dict(metadata or {}))
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Order the header's metadata, whose order the format leaves to chance: equal content becomes equal bytes."""
    with open(path, "r+b") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = parse_object(handle.read(length), path, ModelError)
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(raw) <= length:
            handle.seek(8)
            handle.write(raw.ljust(length))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def check_finite(network: nn.Module, source: object) -> None:
    """Raise ModelError naming the first tensor that holds NaN or infinity."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{source}: tensor {name!r} holds NaN or infinity: the checkpoint is damaged")
