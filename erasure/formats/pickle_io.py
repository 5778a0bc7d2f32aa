"""One numeric array from a file: .npy, safetensors, or a pickle that holds an array and nothing else.

A pickle is a program that calls what it names. The one read here gets numpy's own ways to rebuild an array and
nothing else: any other name ends the reading before it is looked up.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251 (the one place, and through a reader that admits arrays alone)
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from erasure.core.errors import ModelError
from erasure.formats.safetensors_io import read_tensors

LARGEST = 64 << 20  # bytes; the published embeddings have some thousand
# Where these live differs between versions of numpy; the second is what protocol 5 of pickle uses.
RECONSTRUCT: Any = np.empty(1).__reduce_ex__(4)[0]
FROM_BUFFER: Any = np.empty(1).__reduce_ex__(5)[0]


def read_array(path: Path) -> np.ndarray:
    """The array of numbers in a .npy or .safetensors file or a pickle, recognised by its first bytes.

    Raises ModelError when the file is missing, damaged, too large, or holds anything else.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist: expected an array (.npy, .safetensors or a pickled array)")
    if path.stat().st_size > LARGEST:
        raise ModelError(f"{path} has more than {LARGEST >> 20} MiB: expected an array of prompt embeddings")
    raw = path.read_bytes()
    if path.suffix == ".safetensors":
        array = _only_tensor(path)
    elif raw.startswith(b"\x93NUMPY"):
        array = _guarded(path, lambda: np.load(io.BytesIO(raw), allow_pickle=False))
    else:
        array = _guarded(path, lambda: _Arrays(io.BytesIO(raw)).load())
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not array.size:
        raise ModelError(f"{path} holds something other than an array of numbers")
    return array


def _only_tensor(path: Path) -> np.ndarray:
    tensors, _ = read_tensors(path)
    if len(tensors) != 1:
        raise ModelError(f"{path} holds {len(tensors)} tensors: expected one")
    return next(iter(tensors.values())).float().numpy()


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # a damaged file can fail in any way
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path} holds something other than an array and was not loaded: {first[:160]}") from error


class _Arrays(pickle.Unpickler):
    """Rebuilds arrays of numbers; every other name is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file; raises UnpicklingError for one that no array needs."""
        admitted = {
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "numpy.core.multiarray._reconstruct": RECONSTRUCT,
            "numpy._core.multiarray._reconstruct": RECONSTRUCT,
            "numpy.core.numeric._frombuffer": FROM_BUFFER,
            "numpy._core.numeric._frombuffer": FROM_BUFFER,
            "_codecs.encode": _bytes,
        }
        if f"{module}.{name}" not in admitted:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return admitted[f"{module}.{name}"]


def _bytes(text: str, encoding: str) -> bytes:
    """How the older protocols write an array's bytes: as text, one letter each."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it wants the encoding {encoding}, which no array needs")
    return text.encode("latin1")
