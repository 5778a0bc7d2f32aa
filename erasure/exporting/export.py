"""Export a cleaned model: a stock folder, one file in the original layout, the network alone, a delta, or a LoRA.

Every format carries its provenance and a card, and a delta applied to the original gives the cleaned weights bit for
bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from erasure.core.errors import ModelError, NotApplicableError, OptionError, OutputError, RunError, suggestion
from erasure.core.files import parse_object
from erasure.core.logging import log_warning
from erasure.core.provenance import Provenance, name_of, provenance_of, read_provenance, read_sidecar
from erasure.core.run_dir import RunRecord, read_record
from erasure.exporting.components import Original, original
from erasure.exporting.writers import FORMATS, Cleaned, ExportOptions, check, write
from erasure.formats.delta import DELTA, VALUES_ONLY, applied, check_fits
from erasure.formats.safetensors_io import hash_tensors, read_tensors
from erasure.models import Model, load_model, resolve
from erasure.models.guidance import Steering
from erasure.models.info import forget_advice
from erasure.models.loading import check_unchanged

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class ExportResult:
    """What was written: where, in which format, its size in bytes, and its provenance."""

    out: str
    format: str
    bytes: int
    provenance: Provenance

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def export(
    run: object,
    format: str,
    out: str | Path,
    *,
    dtype: str | None = None,
    rank: int = 8,
    lora_keys: str = "kohya",
    base: str | Path | Model | None = None,
) -> ExportResult:
    """Write the cleaned model of a run to a file or a folder, with its provenance and a card.

    Args:
        run: the folder of a finished erasure, or its result.
        format: one of FORMATS.
        out: the file or folder to write; it must not exist, unless it is an earlier export of the same model.
        dtype: one of DTYPES; by default the original's.
        rank: rank of a LoRA.
        lora_keys: names of a LoRA's tensors, kohya or peft.
        base: the original, where it is not where the run found it.

    Raises:
        RunError: the run is not finished.
        ModelError: its model or its original has changed since.
        NotApplicableError: the run changed no weight, or its family has no files of this format.
        OutputError: there is not enough disk space, or `out` is something else.
    """
    if format not in FORMATS:
        raise OptionError(f"unknown --format {format!r}{suggestion(format, FORMATS)}")
    options = ExportOptions(_dtype(dtype), rank, lora_keys)
    folder, target = _folder_of(run), Path(out)
    record = _finished(folder)
    _check_free(target, record["trained"])
    model = load_model(folder)
    _check_changed(folder, record, model)
    provenance = provenance_of(record, model.marks)
    before, place, template = _original(folder, record["settings"]["model"], base, model)
    cleaned = Cleaned(before, model, provenance, template)
    check(format, cleaned, target, options)
    made = "the model that this run made"
    check_unchanged(folder / "model", made, (model.hash, provenance["hash"]), _pair(cleaned.after, provenance, ""))
    began = "the model that this run began from"
    check_unchanged(place, began, (before.hash, provenance["base_hash"]), _pair(cleaned.before, provenance, "base_"))
    return _result(target, format, write(format, cleaned, target, options))


def _pair(tensors: Mapping[str, Tensor], provenance: Mapping[str, Any], side: str) -> tuple[str, str | None]:
    """The hash of the part that a run changed, and the recorded one; None where that part is the whole network."""
    recorded = provenance.get(f"{side}part_hash")
    return (hash_tensors(tensors), recorded) if recorded else ("", None)


def _folder_of(run: object) -> Path:
    """The folder of a run, given by its path or as a result that has a `folder` or names its `run`."""
    for found in (run, getattr(run, "folder", None), getattr(run, "run", None)):
        if isinstance(found, str | Path):
            return Path(found)
    raise OptionError(f"a run is the folder or the result of an erasure, not a {type(run).__name__}")


def _finished(folder: Path) -> RunRecord:
    """The record of a run; raises RunError when it is not a finished erasure."""
    record = read_record(folder / "run.json")
    if record["status"] == "diverged":
        why = record["diverged"]["reason"] if "diverged" in record else "training diverged"
        raise RunError(f"{folder} is not a finished erasure, and is not exported: {why}")
    if record["verb"] != "erase" or record["status"] != "done" or "trained" not in record:
        raise RunError(f"{folder} is not a finished erasure: run `erasure erase --out {folder} ...` first")
    return record


def _check_changed(folder: Path, record: RunRecord, model: Model) -> None:
    """Raise NotApplicableError for a run that guides the sampling and leaves the original's weights."""
    if record["trained"].get("moves") != "nothing":
        return
    steering = Steering.of(model.info)
    advice = f": {steering.advice()}" if steering else ""
    raise NotApplicableError(
        f"{folder} changed no weight ({record['settings']['method']}), there is nothing to export{advice}"
    )


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise OptionError(f"unknown --dtype {name!r}{suggestion(name, DTYPES)}")
    return cast(torch.dtype, getattr(torch, name)) if name else None


def _original(
    folder: Path, recorded: str, base: str | Path | Model | None, model: Model
) -> tuple[Original, str, Path | None]:
    """What a run began from, where it is, and its file where it is a single one."""
    if isinstance(base, Model):
        return _of_model(base, model)
    place = str(base or recorded)
    try:
        return original(place, model) or Original.of(load_model(place)), place, _template(place)
    except ModelError as error:
        if base:
            raise ModelError(error.message.replace("--model", "--base", 1)) from error
        why = error.message.removeprefix("--model ").partition(" (did you")[0]
        raise ModelError(f"{folder} was made from another model: {why}: say with --base where it is now") from error


def _of_model(loaded: Model, like: Model) -> tuple[Original, str, Path | None]:
    """The same of a model in memory: a single file that it was loaded from is read anew, for what else is in it."""
    template = Path(loaded.source) if loaded.source and Path(loaded.source).is_file() else None
    found = original(loaded.source, like) if template else None
    return found or Original.of(loaded), loaded.source, template


def _template(place: str) -> Path | None:
    """The single file at `place`, None for a folder or a hub id."""
    path = Path(resolve(place))
    return path if path.is_file() else None


def _result(target: Path, format: str, provenance: Provenance) -> ExportResult:
    return ExportResult(str(target), format, _size(target), provenance)


def apply_delta(
    delta: str | Path, model: str | Path | Model, out: str | Path, *, dtype: str | None = None
) -> ExportResult:
    """Apply a delta to a model and write the result: a folder, or one file when `out` ends in .safetensors.

    Applied to the model it was made from it gives the cleaned model bit for bit, in the dtype of that model or in
    `dtype`; to another fine-tune of the same architecture it adds the same change, and says so. Raises ModelError
    when the model is of another architecture, or when the delta is damaged.
    """
    tensors, header, provenance = _read_delta(Path(delta))
    options, target = ExportOptions(_dtype(dtype)), Path(out)
    base = model.clone() if isinstance(model, Model) else load_model(model)
    format = "safetensors" if target.suffix == ".safetensors" else "diffusers"
    if isinstance(model, Model):
        before, place, template = _of_model(model, base)
    else:
        before, place, template = original(str(model), base) or Original.of(base), str(model), _template(str(model))
    cleaned = Cleaned(before, base, _bare(provenance), template)
    check(format, cleaned, target, options)
    if base.hash == header["base_hash"]:
        after = applied(base.network.state_dict(), tensors)
        found = hash_tensors(after)
        if found != header["hash"]:
            raise ModelError(f"{delta} is damaged: applied to {place} it does not give the cleaned model")
    else:
        _check_relative(base, header, f"--to {place} is not the model that {delta} was made from")
        after = applied(base.network.state_dict(), tensors, exact=False)
        found = hash_tensors(after)
        log_warning(f"{delta} was applied to another model than it was made for: audit the result again")
        provenance = _of_relative(provenance, place, base.hash, found)
    _check_free(target, {"hash": found})
    _replace_weights(base, after, provenance)
    cleaned = replace(cleaned, provenance=cast(Provenance, {**_bare(provenance), "marks": base.marks}))
    return _result(target, "delta applied", write(format, cleaned, target, options))


def _read_delta(path: Path) -> tuple[dict[str, Tensor], dict[str, str], Provenance]:
    """The tensors, the header and the provenance of a delta; raises ModelError for any other file."""
    tensors, header = read_tensors(path)
    provenance = read_provenance(header, path)
    if header.get("format") not in (DELTA, VALUES_ONLY) or not {"base_hash", "hash"} <= set(header) or not provenance:
        raise ModelError(f"--apply {path} is not a delta: make one with `erasure export RUN --format delta`")
    return tensors, header, provenance


def _check_relative(base: Model, header: Mapping[str, str], refusal: str) -> None:
    """Raise ModelError for a model of another architecture, or for a delta that fits its own base alone."""
    if header["format"] == VALUES_ONLY:
        raise ModelError(f"{refusal}: export the delta again to apply it to others, this one holds whole weights")
    damaged = f"{refusal}, and it does not say which tensors it fits: the file is damaged"
    try:
        check_fits(parse_object(header.get("shapes", ""), damaged, ModelError), base.network.state_dict(), refusal)
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(damaged) from error


def _of_relative(provenance: Provenance, model: str, base_hash: str, found: str) -> Provenance:
    """The provenance of a change that was added to another model: what was measured does not hold for it."""
    return {
        **provenance,
        "delta": {"base": provenance.get("base"), "base_hash": provenance.get("base_hash"), "hash": provenance["hash"]},
        "applied_to": "another model than it was made for",
        "base": name_of(model),
        "base_hash": base_hash,
        "hash": found,
        "metrics": {},
    }


def _replace_weights(model: Model, tensors: Mapping[str, Tensor], provenance: Provenance) -> None:
    """Replace the network's weights, and add the marks of the run that they come from."""
    marks = provenance.get("marks", {})
    if not isinstance(marks, dict):
        raise ModelError("the delta's provenance is damaged: its marks are not a JSON object")
    model.network.load_state_dict(tensors, assign=True)
    forget_advice(model.info)
    model.add_marks(marks)


def _bare(provenance: Provenance) -> Provenance:
    """The provenance without what was true of the delta's file alone."""
    of_file = ("format", "dtype", "changed", "sha256")
    return cast(Provenance, {key: value for key, value in provenance.items() if key not in of_file})


def _check_free(target: Path, own: Mapping[str, Any]) -> None:
    """Refuse to replace anything but an earlier export of the same model, whose hashes are `own`."""
    if target.is_dir():
        free = _same(read_sidecar(target), own) or not any(target.iterdir())
    else:
        free = not target.exists() or _same(_inside(target), own)
    if not free:
        raise OutputError(f"--out {target} exists and is something else: give another --out or remove it")


def _same(found: Mapping[str, Any] | None, own: Mapping[str, Any]) -> bool:
    return found is not None and all(found.get(key) == own.get(key) for key in ("hash", "part_hash"))


def _inside(target: Path) -> Provenance | None:
    """The provenance of an earlier export, None for any other file."""
    try:
        return read_provenance(read_tensors(target)[1], target)
    except ModelError:
        return None


def _size(target: Path) -> int:
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
