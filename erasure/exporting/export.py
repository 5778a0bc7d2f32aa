"""Export a cleaned model: a stock folder, one file in the original layout, the network alone, a delta, or a LoRA.

Every form carries its provenance and a card, and a delta applied to the original gives the cleaned weights bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasure.core.errors import ModelError, NotApplicableError, OptionError, OutputError, RunError, suggestion
from erasure.core.files import read_json
from erasure.core.logging import log_user
from erasure.core.provenance import SIDECAR, name_of, provenance_of, read_provenance
from erasure.core.run_dir import RunRecord, read_record
from erasure.exporting.components import Original, original
from erasure.exporting.writers import FORMATS, Cleaned, ExportOptions, settled, write
from erasure.formats.delta import DELTA, VALUES_ONLY, applied, check_fits
from erasure.formats.safetensors_io import hash_tensors, read_tensors
from erasure.models import Model, load_model, resolve
from erasure.models.guidance import Steering
from erasure.models.info import forget_advice

DTYPES = ("float16", "bfloat16", "float32")


def export(
    run: str | Path,
    form: str,
    out: str | Path,
    *,
    dtype: str | None = None,
    rank: int = 8,
    lora_keys: str = "kohya",
    base: str | None = None,
) -> dict[str, Any]:
    """Write the cleaned model of `run` to `out` as one of FORMATS; returns what was written, its size and provenance.

    `dtype` is one of DTYPES (default: what the base came in), `rank` and `lora_keys` are a LoRA's, `base` says where
    the run's original is now. `out` must not exist, unless it is an earlier export of the same model. Raises RunError
    for a run that is not done, ModelError when its model or its original is no longer what it was, OutputError when the
    disk has no room, NotApplicableError for a run that changed no weight.
    """
    if form not in FORMATS:
        raise OptionError(f"unknown --format {form!r}{suggestion(form, FORMATS)}")
    manner = ExportOptions(_number_format(dtype), rank, lora_keys)
    folder, target = Path(run), Path(out)
    document = _finished(folder)
    _check_free(target, document["trained"])
    model = load_model(folder)
    _check_changed(folder, document, model)
    provenance, settings = provenance_of(document, model.marks), document["settings"]
    before, place = _original(folder, settings, base, model)
    cleaned = Cleaned(before, model, provenance, _template(place))
    settled(form, cleaned, target, manner)
    if model.hash != provenance["hash"] or _other(cleaned.after, provenance.get("part_hash")):
        raise ModelError(f"{folder / 'model'} is not the model this run made: its weights have changed since")
    if before.hash != settings["model_hash"] or _other(cleaned.before, provenance.get("base_part_hash")):
        raise ModelError(f"{place} is no longer the model this run began from: its weights have changed")
    return _result(target, form, write(form, cleaned, target, manner))


def _other(tensors: Mapping[str, Tensor], recorded: str | None) -> bool:
    """Whether tensors have another hash than was recorded of them, where one was."""
    return recorded is not None and hash_tensors(tensors) != recorded


def _finished(folder: Path) -> RunRecord:
    """The record of a run; raises RunError when it is not an erasure, or was not done."""
    document = read_record(folder / "run.json")
    if document["status"] == "diverged":
        why = document["diverged"]["reason"] if "diverged" in document else "training diverged"
        raise RunError(f"{folder} is not a finished erasure, and is not exported: {why}")
    if document["verb"] != "erase" or document["status"] != "done" or "trained" not in document:
        raise RunError(f"{folder} is not a finished erasure: run `erasure erase --out {folder} ...` first")
    return document


def _check_changed(folder: Path, document: Mapping[str, Any], model: Model) -> None:
    """Raise NotApplicableError for a run that left an instruction for drawing, and the original's weights."""
    if document["trained"].get("moves") != "nothing":
        return
    steering = Steering.of(model.info)
    advice = f": {steering.advice()}" if steering else ""
    raise NotApplicableError(
        f"{folder} changed no weight ({document['settings']['method']}), there is nothing to export{advice}"
    )


def _number_format(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise OptionError(f"unknown --dtype {name!r}{suggestion(name, DTYPES)}")
    return getattr(torch, name) if name else None


def _original(folder: Path, settings: Mapping[str, Any], base: str | None, model: Model) -> tuple[Original, str]:
    """What a run began from, left in its files where they can be read one tensor at a time, and where it is."""
    place = base or settings["model"]
    try:
        return original(place, model) or Original.of(load_model(place)), place
    except ModelError as error:
        if base:
            raise ModelError(error.message.replace("--model", "--base", 1)) from error
        why = error.message.removeprefix("--model ").partition(" (did you")[0]
        raise ModelError(f"{folder} was made from another model: {why}: say with --base where it is now") from error


def _template(place: str) -> Path | None:
    path = Path(resolve(place))
    return path if path.is_file() else None


def _result(target: Path, form: str, provenance: dict[str, Any]) -> dict[str, Any]:
    return {"out": str(target), "format": form, "bytes": _size(target), "provenance": provenance}


def apply_delta(delta: str | Path, model: str, out: str | Path, *, dtype: str | None = None) -> dict[str, Any]:
    """Apply a delta; `out` becomes a folder, or one file when it ends in .safetensors.

    Applied to the model it was made from it gives the cleaned model bit for bit, in the number format of that model or
    in `dtype`; to another fine-tune of the same architecture it adds the same change, and says so. Raises ModelError
    when the model is of another architecture, or when the delta is damaged.
    """
    tensors, header = read_tensors(Path(delta))
    provenance = read_provenance(header, delta)
    if header.get("format") not in (DELTA, VALUES_ONLY) or not {"base_hash", "hash"} <= set(header) or not provenance:
        raise ModelError(f"--apply {delta} is not a delta: make one with `erasure export RUN --format delta`")
    number_format, target = _number_format(dtype), Path(out)
    base = load_model(model)
    form = "safetensors" if target.suffix == ".safetensors" else "diffusers"
    cleaned = Cleaned(original(model, base) or Original.of(base), base, _bare(provenance), _template(model))
    settled(form, cleaned, target, ExportOptions(number_format))
    own = base.hash == header["base_hash"]
    if not own:
        _check_relative(base, header, f"--to {model} is not the model that {delta} was made from")
    moved = applied(base.network.state_dict(), tensors, exact=own)
    found = hash_tensors(moved)
    if own and found != header["hash"]:
        raise ModelError(f"{delta} is damaged: applied to {model} it does not give the cleaned model")
    if not own:
        log_user(f"{delta} was applied to another model than it was made for: audit the result again")
        provenance = _of_relative(provenance, model, base.hash, found)
    _check_free(target, {"hash": found})
    _put(base, moved, provenance)
    provenance = {**_bare(provenance), "marks": base.marks}
    written = write(form, replace(cleaned, provenance=provenance), target, ExportOptions(number_format))
    return _result(target, "delta applied", written)


def _check_relative(base: Model, header: Mapping[str, str], refusal: str) -> None:
    """A delta can be added to a model of the same architecture, if it holds what was added."""
    if header["format"] == VALUES_ONLY:
        raise ModelError(f"{refusal}: export the delta again to apply it to others, this one holds whole weights")
    try:
        shapes = json.loads(header["shapes"])
        check_fits(shapes, base.network.state_dict(), refusal)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{refusal}, and it does not say which tensors it fits: the file is damaged") from error


def _of_relative(provenance: Mapping[str, Any], model: str, base_hash: str, found: str) -> dict[str, Any]:
    """The provenance of a change that was added to another model: what was measured does not hold for it."""
    return {
        **provenance,
        "delta": {key: provenance.get(key) for key in ("base", "base_hash", "hash")},
        "applied_to": "another model than it was made for",
        "base": name_of(model),
        "base_hash": base_hash,
        "hash": found,
        "metrics": {},
    }


def _put(model: Model, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Give the model's network other weights in place of its own, and mark it as the run marked its own."""
    model.network.load_state_dict(tensors, assign=True)
    forget_advice(model.info)
    marks = provenance.get("marks", {})
    if not isinstance(marks, dict):
        raise ModelError("the delta's provenance is damaged: its marks are not a JSON object")
    model.add_marks(marks)


def _bare(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance without what was true of the delta's file alone."""
    return {key: value for key, value in provenance.items() if key not in ("format", "dtype", "changed", "sha256")}


def _check_free(target: Path, own: Mapping[str, Any]) -> None:
    """Refuse to replace anything but an earlier export of the same model, whose hashes are `own`."""
    if target.is_dir():
        sidecar = target / SIDECAR
        found = read_json(sidecar) if sidecar.is_file() else None
        free = _same(found, own) or not any(target.iterdir())
    elif target.exists():
        free = _same(_inside(target), own)
    else:
        free = True
    if not free:
        raise OutputError(f"--out {target} exists and is something else: give another --out or remove it")


def _same(found: Mapping[str, Any] | None, own: Mapping[str, Any]) -> bool:
    return found is not None and all(found.get(key) == own.get(key) for key in ("hash", "part_hash"))


def _inside(target: Path) -> dict[str, Any] | None:
    """The provenance of an earlier export, None for any other file."""
    try:
        return read_provenance(read_tensors(target)[1], target)
    except ModelError:
        return None


def _size(target: Path) -> int:
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
