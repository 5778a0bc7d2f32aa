"""Safetensors files byte by byte: read a header with suspicion, and write a file in a given order or after a template.

The stock writer sorts tensors and needs them all in memory. Here a user's own file can be copied with a few tensors
replaced: every other byte of its data stays as it was, and memory holds one tensor at a time. The format is the one of
https://huggingface.co/docs/safetensors: eight bytes of length, a JSON header, the data without holes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from erasure.core.errors import ModelError
from erasure.core.files import atomic_path
from erasure.formats.safetensors_io import read_pickled_state, reason

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
HEADER_LIMIT = 100_000_000  # bytes; the stock reader's own limit
CHUNK = 1 << 24
# What a template says of its own content, no longer true of a changed copy.
STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


class Entry(NamedTuple):
    """One tensor of a file: its type's code, its shape, and where its bytes begin and end in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes one element takes."""
        return DTYPES[self.dtype].itemsize


def is_pickle(path: Path) -> bool:
    """Whether a file is a torch pickle (.ckpt, .pt), by its first bytes; raises ModelError if there is no file.

    A safetensors header may be 640 bytes long, which looks like the start of a pickle; its brace shows that it is none.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(9)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    return head[8:] != b"{" and (head[:1] == b"\x80" or head[:4] == b"PK\x03\x04")


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file, in the order its header names them, and its metadata.

    Raises ModelError when the file is missing, cut short or longer than its header says, is a pickle, names a tensor
    twice, or holds tensors that overlap, leave holes, or do not fit their shapes.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(handle.read(length), object_pairs_hook=_without_repeats)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(name, value) for name, value in header.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is not text")
        _check_layout(entries, size - 8 - length)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist: expected a safetensors file") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({reason(path, error)})") from error
    return entries, metadata


def dtype_of(path: Path) -> torch.dtype:
    """The floating type of most weights of a safetensors file, from its header alone; float32 when it has none."""
    counts: dict[str, int] = {}
    for entry in read_header(path)[0].values():
        counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.end - entry.begin
    most = max(counts, key=lambda code: counts[code]) if counts else ""
    return DTYPES[most] if most in ("F16", "BF16") else torch.float32


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _entry(name: str, value: Mapping[str, Any]) -> Entry:
    begin, end = value["data_offsets"]
    entry = Entry(value["dtype"], tuple(value["shape"]), begin, end)
    if entry.dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown type {entry.dtype!r}")
    count = entry.size
    for extent in (*entry.shape, begin, end):
        if type(extent) is not int or extent < 0:
            raise ValueError(f"tensor {name!r} has a shape or an offset that is no count")
    for extent in entry.shape:
        count *= extent
    if end - begin != count:
        raise ValueError(f"tensor {name!r} has {end - begin} bytes where its shape needs {count}")
    return entry


def _check_layout(entries: Mapping[str, Entry], available: int) -> None:
    place = 0
    for name, entry in by_place(entries):
        if entry.begin != place:
            raise ValueError(f"tensor {name!r} begins at byte {entry.begin}, expected {place}")
        place = entry.end
    if place != available:
        raise ValueError(f"its tensors need {place} bytes, it has {available}")


def by_place(entries: Mapping[str, Entry]) -> list[tuple[str, Entry]]:
    """Names and entries in the order of their bytes."""
    return sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))


def write_ordered(
    out: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write a safetensors file whose header names the tensors in the given order, atomically.

    With `dtype`, all floating tensors are written in it; raises ModelError when a number is too large for it.
    """
    wanted = {}
    for name in tensors:
        tensor = tensors[name]  # may be made on the fly: look it up once, keep no reference
        kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        wanted[name] = (CODES[kind], tuple(tensor.shape))
    entries = placed(wanted)

    def content(name: str) -> Iterator[memoryview]:
        yield as_bytes(cast(name, tensors[name], DTYPES[entries[name].dtype]))

    with atomic_path(out) as temporary, open(temporary, "wb") as target:
        _write(target, entries, metadata, content)


def write_patched(
    template: Path,
    out: Path,
    changed: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    drop: tuple[str, ...] = (),
) -> None:
    """Copy `template` to the safetensors file `out` with the tensors of `changed` replaced, atomically.

    Names keep their order, every other tensor keeps its bytes, and the changed ones take the template's number format;
    with `dtype`, all floating tensors take that one. Tensors whose names begin with one of `drop` are left out, such as
    a file's averaged copy of the weights. `metadata` is added to the template's own, without the hashes it had. The
    template may be a pickle (.ckpt) of tensors. Raises ModelError when the template is damaged, when a changed tensor
    is not in it or has another shape, and when a number does not fit the format.
    """
    source = _Pickle(template) if is_pickle(template) else _Safetensors(template)
    shapes = {name: shape for name, shape in source.shapes.items() if not name.startswith(drop or "\0")}
    _check_changed(template, shapes, changed)
    cast_to = CODES[dtype] if dtype else None
    wanted = {
        name: (cast_to if cast_to and DTYPES[code].is_floating_point else code, shape)
        for name, (code, shape) in shapes.items()
    }
    same = wanted == source.shapes and isinstance(source, _Safetensors)
    entries = source.entries if same else placed(wanted)
    kept = {key: value for key, value in source.metadata.items() if key not in STALE}

    def content(name: str) -> Iterator[Any]:
        code = entries[name].dtype
        if name in changed:
            return iter((as_bytes(cast(name, changed[name], DTYPES[code])),))
        if code == source.shapes[name][0]:
            return source.chunks(name)
        return iter((as_bytes(cast(name, source.tensor(name), DTYPES[code])),))

    with source, atomic_path(out) as temporary, open(temporary, "wb") as target:
        _write(target, entries, {**kept, **metadata}, content)


def _check_changed(
    template: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], changed: Mapping[str, Tensor]
) -> None:
    """Raise ModelError for a changed tensor that the template does not have, or has in another shape."""
    for name, tensor in changed.items():
        if name not in shapes:
            raise ModelError(f"{template} has no tensor {name!r}: it is not the file this model came from")
        if tuple(tensor.shape) != shapes[name][1]:
            raise ModelError(f"{template}: tensor {name!r} is {shapes[name][1]}, the changed one {tuple(tensor.shape)}")


def placed(wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Entries in the given order, their bytes placed widest numbers first so that each begins at its own alignment."""
    bounds, place = {}, 0
    for name, (code, shape) in sorted(wanted.items(), key=lambda item: -DTYPES[item[1][0]].itemsize):
        begin, place = place, place + DTYPES[code].itemsize * torch.Size(shape).numel()
        bounds[name] = (begin, place)
    return {name: Entry(code, shape, *bounds[name]) for name, (code, shape) in wanted.items()}


def _write(
    target: BinaryIO,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str],
    content: Callable[[str], Iterator[Any]],
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    target.write(len(raw).to_bytes(8, "little") + raw)
    for name, _ in by_place(entries):
        for chunk in content(name):
            target.write(chunk)


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in another number format; raises ModelError when a finite number is too large for it."""
    result = tensor.detach().cpu().to(dtype)
    if dtype.is_floating_point and dtype.itemsize < tensor.element_size():
        lost = torch.isfinite(tensor.detach().cpu().float()) & ~torch.isfinite(result.float())
        if bool(lost.any()):
            raise ModelError(f"tensor {name!r} holds numbers too large for {str(dtype).removeprefix('torch.')}")
    return result


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


class _Safetensors:
    """A safetensors template, read one piece at a time."""

    def __init__(self, path: Path) -> None:
        self.entries, self.metadata = read_header(path)
        self.shapes = {name: (entry.dtype, entry.shape) for name, entry in self.entries.items()}
        self._path = path

    def chunks(self, name: str) -> Iterator[bytes]:
        entry = self.entries[name]
        self._file.seek(self._start + entry.begin)
        left = entry.end - entry.begin
        while left:
            chunk = self._file.read(min(CHUNK, left))
            if not chunk:
                raise ModelError(f"{self._path} became shorter while it was read")
            left -= len(chunk)
            yield chunk

    def tensor(self, name: str) -> Tensor:
        entry, raw = self.entries[name], bytearray(b"".join(self.chunks(name)))
        if not raw:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        return torch.frombuffer(raw, dtype=DTYPES[entry.dtype]).reshape(entry.shape)

    def __enter__(self) -> _Safetensors:
        self._file = open(self._path, "rb")
        self._start = 8 + int.from_bytes(self._file.read(8), "little")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Pickle:
    """A pickled template, whose tensors its own loader maps into memory."""

    entries: Mapping[str, Entry] = {}

    def __init__(self, path: Path) -> None:
        self._tensors, self.metadata = read_pickled_state(path), dict[str, str]()
        self.shapes = {name: (CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in self._tensors.items()}

    def chunks(self, name: str) -> Iterator[memoryview]:
        yield as_bytes(self._tensors[name])

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def __enter__(self) -> _Pickle:
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors.clear()
