"""Export a cleaned model: the stock library's folder, one safetensors file, or a sparse delta against its original.

Every form carries its provenance, and a delta applied to the original gives the cleaned weights bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erasure.errors import ModelError, OptionError, OutputError, RunError, suggestion
from erasure.models import Model, load_model
from erasure.run import atomic_folder, read_json, read_record, write_json
from erasure.weights import hash_tensors, read_tensors, write_tensors

FORMATS = ("diffusers", "safetensors", "delta")
DELTA = "erasure-delta-1"
BITS_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}


def export(run: str | Path, form: str, out: str | Path) -> dict[str, Any]:
    """Write the cleaned model of `run` to `out` as one of FORMATS; returns what was written, its size and provenance.

    `out` must not exist, unless it is an earlier export of the same model. Raises RunError for an unfinished run.
    """
    if form not in FORMATS:
        raise OptionError(f"unknown --format {form!r}{suggestion(form, FORMATS)}")
    folder, target = Path(run), Path(out)
    document = read_record(folder / "run.json")
    if document.get("verb") != "erase" or "trained" not in document:
        raise RunError(f"{folder} is not a finished erasure: run `erasure erase --out {folder} ...` first")
    model = load_model(folder)
    provenance = provenance_of(document)
    if model.hash != provenance["hash"]:
        raise ModelError(f"{folder / 'model'} is not the model this run made: its weights have changed since")
    _check_free(target, provenance["hash"])
    if form == "diffusers":
        _write_folder(folder / "model", target, provenance)
    else:
        tensors, header = _single(model) if form == "safetensors" else _delta(model, document)
        write_tensors(target, tensors, {**header, "erasure": json.dumps(provenance)})
        write_json(target.with_suffix(target.suffix + ".json"), provenance)
    return {"out": str(target), "format": form, "bytes": _size(target), "provenance": provenance}


def provenance_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a file must say of itself: from which weights, by which method, with which seed, and how it scored."""
    settings, trained, result = document["settings"], document["trained"], document.get("result", {})
    scores = {name: score["value"] for name, score in result.get("metrics", {}).items()}
    return {
        "tool": f"erasure {version('erasure')}",
        "base": Path(settings["model"]).name if Path(settings["model"]).is_absolute() else settings["model"],
        "base_hash": settings["model_hash"],
        "hash": trained["hash"],
        "data_hash": settings["data_hash"],
        "forget": settings["forget"],
        "method": settings["method"],
        "options": settings["options"],
        "mask": Path(settings["mask"]).name,
        "mask_density": document.get("mask_density"),
        "saliency": settings["saliency"],
        "seed": settings["seed"],
        "changed_weights": trained["changed_weights"],
        "total_weights": trained["total_weights"],
        "metrics": scores,
        "versions": document["versions"],
    }


def _single(model: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    return dict(model.network.state_dict()), {"format": "pt"}


def _delta(model: Model, document: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    settings = document["settings"]
    base = load_model(settings["model"])
    if base.hash != settings["model_hash"]:
        raise ModelError(f"{settings['model']} is no longer the model this run began from: its weights have changed")
    tensors = difference(base.network.state_dict(), model.network.state_dict())
    return tensors, {"format": DELTA, "base_hash": base.hash, "hash": document["trained"]["hash"]}


def difference(base: Mapping[str, Tensor], cleaned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What differs, bit by bit, as `<name>::values` with `::index` (positions), `::bits` (one bit a weight) or neither.

    Of the three each tensor takes the smallest; tensors that are equal take nothing.
    """
    found: dict[str, Tensor] = {}
    for name, after in cleaned.items():
        flat = after.detach().cpu().contiguous().reshape(-1)
        changed = _as_bits(flat) != _as_bits(base[name].detach().cpu().contiguous().reshape(-1))
        count, total = int(changed.sum()), changed.numel()
        if not count:
            continue
        wide = total >= 1 << 31
        sizes = {
            "index": count * (flat.element_size() + (8 if wide else 4)),
            "bits": count * flat.element_size() + (total + 7) // 8,
            "": total * flat.element_size(),
        }
        form = min(sizes, key=lambda key: sizes[key])
        found[f"{name}::values"] = flat[changed] if form else flat.clone()
        if form == "index":
            found[f"{name}::index"] = changed.nonzero().flatten().to(torch.int64 if wide else torch.int32)
        elif form == "bits":
            found[f"{name}::bits"] = torch.from_numpy(np.packbits(changed.numpy()))
    return found


def applied(base: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `difference` was taken from; raises ModelError when the delta names tensors the base lacks."""
    cleaned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in base.items()}
    for key, values in delta.items():
        name, _, kind = key.partition("::")
        if kind != "values":
            continue
        if name not in cleaned:
            raise ModelError(f"the delta changes tensor {name!r}, which the model does not have")
        flat = cleaned[name].reshape(-1)
        try:
            _scatter(flat, values, delta.get(f"{name}::index"), delta.get(f"{name}::bits"))
        except (RuntimeError, IndexError, ValueError) as error:
            raise ModelError(f"the delta's change of tensor {name!r} does not fit: the file is damaged") from error
    return cleaned


def _scatter(flat: Tensor, values: Tensor, index: Tensor | None, bits: Tensor | None) -> None:
    """Write `values` into `flat` at the coded positions, or all over it."""
    if index is not None:
        flat[index.long()] = values
    elif bits is not None:
        flat[torch.from_numpy(np.unpackbits(bits.numpy(), count=flat.numel()).view(bool))] = values
    else:
        flat.copy_(values)


def apply_delta(delta: str | Path, model: str, out: str | Path) -> dict[str, Any]:
    """Apply a delta to the model it was made from; `out` becomes a folder, or one file when it ends in .safetensors.

    Raises ModelError when `model` is another one, or when the result is not, bit for bit, the cleaned model.
    """
    tensors, header = read_tensors(Path(delta))
    if header.get("format") != DELTA or not {"base_hash", "hash", "erasure"} <= set(header):
        raise ModelError(f"--apply {delta} is not a delta: make one with `erasure export RUN --format delta`")
    base, target = load_model(model), Path(out)
    if base.hash != header["base_hash"]:
        raise ModelError(
            f"--to {model} is not the model that {delta} was made from "
            f"(hash {base.hash[:12]}, expected {header['base_hash'][:12]})"
        )
    provenance = json.loads(header["erasure"])
    _check_free(target, provenance["hash"])
    cleaned = applied(base.network.state_dict(), tensors)
    if hash_tensors(cleaned) != header["hash"]:
        raise ModelError(f"{delta} is damaged: applied to {model} it does not give the cleaned model")
    base.network.load_state_dict(cleaned)
    for name in ("weights_dtype", "erase"):
        base.info.pop(name, None)
    if target.suffix == ".safetensors":
        write_tensors(target, cleaned, {"format": "pt", "erasure": json.dumps(provenance)})
        write_json(target.with_suffix(".safetensors.json"), provenance)
    else:
        base.save(target)
        write_json(target / "provenance.json", provenance)
    return {"out": str(target), "format": "delta applied", "bytes": _size(target), "provenance": provenance}


def _as_bits(flat: Tensor) -> Tensor:
    return flat.view(BITS_OF[flat.element_size()])


def _write_folder(source: Path, target: Path, provenance: Mapping[str, Any]) -> None:
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        write_json(temporary / "provenance.json", provenance)


def _check_free(target: Path, own_hash: str) -> None:
    """Refuse to replace anything but an earlier export of the same model."""
    if target.is_dir():
        card = target / "provenance.json"
        found = read_json(card).get("hash") if card.is_file() else None
        free = found == own_hash or not any(target.iterdir())
    elif target.exists():
        free = _hash_inside(target) == own_hash
    else:
        free = True
    if not free:
        raise OutputError(f"--out {target} exists and is something else: give another --out or remove it")


def _hash_inside(target: Path) -> str | None:
    """The cleaned model's hash in the provenance of an earlier export, None for any other file."""
    try:
        found = json.loads(read_tensors(target)[1].get("erasure", "{}"))
    except (ModelError, ValueError):
        return None
    return found.get("hash") if isinstance(found, dict) else None


def _size(target: Path) -> int:
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
