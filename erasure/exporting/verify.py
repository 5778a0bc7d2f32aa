"""Verify a file: what it says of itself, whether its tensors are those that were written, and what differs from a base.

A recorded hash shows damage; only the comparison with the base proves what changed, since whoever writes a file writes
its hashes too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from erasure.core.errors import ModelError
from erasure.core.files import read_json
from erasure.core.provenance import SIDECAR, read_provenance
from erasure.exporting.components import (
    as_written,
    change,
    component_of,
    configs_of,
    folder_tensors,
    hashes,
    in_folder,
    in_one_file,
    raw_tensors,
    states_of,
)
from erasure.exporting.writers import FORMATS
from erasure.formats.delta import DELTA, VALUES_ONLY, applied
from erasure.formats.safetensors_io import hash_tensors
from erasure.formats.safetensors_stream import is_pickle, read_header
from erasure.formats.single_file import AVERAGED
from erasure.models import Model, load_model, resolve
from erasure.models.stable_diffusion import StableDiffusion
from erasure.saliency.mask import FORMAT as MASK
from erasure.saliency.mask import Mask

CLOSE = 1e-4  # a relative change is recorded with six digits


@dataclass(frozen=True)
class _Found:
    """A file on disk: its form, its tensors as they are, its header, and its provenance if it has one."""

    path: Path
    form: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    provenance: dict[str, Any] | None


def verify(file: str | Path, base: str | None = None) -> dict[str, Any]:
    """Check a file or folder; returns its `format`, its `provenance`, `verified`, and in words what was `checked`.

    With a `base`, every tensor outside the recorded change must be the base's bit for bit, and the change as recorded;
    of a file without provenance `differences` from the base are listed instead, and `verified` is False. Raises
    ModelError naming the first tensor that is not as recorded.
    """
    found = _opened(Path(file))
    if found.form == "mask":
        return _mask(found, base)
    if found.provenance is None:
        if base is None:
            raise ModelError(f"{file} carries no provenance of an erasure: give --base to see what differs from it")
        model, place = _base(base)
        return {**_answer(found, False, []), **_listed(found, *_sides(found, model, place))}
    try:
        checked = _against(found, base) if base is not None else []
        checked.append(_hashed(found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{file}: its provenance is damaged ({type(error).__name__}: {error})") from error
    return _answer(found, True, checked)


def _answer(found: _Found, verified: bool, checked: list[str]) -> dict[str, Any]:
    head = {"file": str(found.path), "format": found.form, "verified": verified}
    return {**head, "checked": checked, "provenance": found.provenance}


def _opened(path: Path) -> _Found:
    if path.is_dir():
        folder = path / "model" if (path / "run.json").is_file() else path
        sidecar = folder / SIDECAR
        provenance = read_json(sidecar) if sidecar.is_file() else None
        return _Found(path, "diffusers", folder_tensors(folder), {}, provenance)
    header = {} if is_pickle(path) else read_header(path)[1]
    provenance = read_provenance(header, path)
    tensors = raw_tensors(path)
    form = provenance.get("format") if provenance else None
    return _Found(path, form if form in FORMATS else _form_of(tensors, header), tensors, header, provenance)


def _form_of(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """The form of a file that does not say it."""
    ours = {DELTA: "delta", VALUES_ONLY: "delta", MASK: "mask"}.get(header.get("format", ""))
    if ours:
        return ours
    if any("lora" in name for name in tensors):
        return "lora"
    return "single-file" if any(name.startswith("model.diffusion_model.") for name in tensors) else "unet"


def _base(given: str) -> tuple[Model, str]:
    try:
        return load_model(given), resolve(given)
    except ModelError as error:
        raise ModelError(error.message.replace("--model", "--base", 1)) from error


def _sides(found: _Found, model: Model, place: str) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The base's tensors and the file's, under the same names and in the file's number formats."""
    if found.form == "single-file":
        if Path(place).is_file():
            before = raw_tensors(Path(place))
        elif isinstance(model, StableDiffusion) and model.one_file:
            before = in_one_file(states_of(model), configs_of(model))
        else:
            raise ModelError(f"{found.path} is a Stable Diffusion model: --base {place} is a {model.family} model")
    elif found.form == "diffusers":
        before = in_folder(model)
    elif found.form in ("unet", "safetensors"):
        before = model.network.state_dict()
    else:
        raise ModelError(f"{found.path} is a {found.form} without provenance: there is nothing to compare with a base")
    after = found.tensors
    return as_written(before, lambda name: after[name].dtype if name in after else None), after


def _listed(found: _Found, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Any]:
    """Every difference between two sets of tensors."""
    differences: dict[str, Any] = {}
    for name in after:
        if name in before:
            known = before[name].shape == after[name].shape
            moved = change(before[name], after[name]) if known else "another shape"
            differences |= {name: moved} if moved else {}
    return {
        "differences": differences,
        "only_in_file": [name for name in after if name not in before],
        "only_in_base": [name for name in before if name not in after],
        "note": f"{found.path} carries no provenance: nothing is claimed, and nothing was verified",
    }


def _against(found: _Found, base: str) -> list[str]:
    model, place = _base(base)
    provenance = found.provenance or {}
    if model.hash != provenance["base_hash"]:
        raise ModelError(
            f"--base {base} is not the model that {found.path} was made from (hash {model.hash[:12]}, expected "
            f"{provenance['base_hash'][:12]})"
        )
    if found.form in ("delta", "lora"):
        return [(_delta if found.form == "delta" else _lora)(found, model)]
    before, after = _sides(found, model, place)
    _same_names(found, before, after, provenance["changed"])
    for name in after:
        _as_recorded(found.path, name, change(before[name], after[name]), provenance["changed"].get(name), base)
    changed = provenance["changed"]
    parts = ", ".join(dict.fromkeys(component_of(found.form, name) for name in changed))
    told = f"{len(changed)} changed as recorded{f', of the {parts}' if parts else ''}"
    return [f"{len(after) - len(changed)} tensors are those of {base} bit for bit, {told}"]


def _same_names(
    found: _Found, before: Mapping[str, Tensor], after: Mapping[str, Tensor], changed: Mapping[str, Any]
) -> None:
    """The file has the base's tensors in their shapes, but for an averaged copy, which is left out when it is stale."""
    for name in [*after, *changed]:
        if name not in before or name not in after:
            raise ModelError(f"{found.path}: tensor {name!r} is not in {'the base' if name in after else 'the file'}")
        if before[name].shape != after[name].shape:
            raise ModelError(f"{found.path}: tensor {name!r} has another shape than in the base")
    missing = [name for name in before if name not in after and not name.startswith(AVERAGED)]
    if missing:
        raise ModelError(f"{found.path}: tensor {missing[0]!r} of the base is missing")


def _as_recorded(path: Path, name: str, moved: list[Any] | None, recorded: Any, base: str) -> None:
    if recorded is None:
        if moved is not None:
            raise ModelError(
                f"{path}: tensor {name!r} differs from {base} in {moved[1]:,} weights, and no change of it is recorded"
            )
        return
    relative, count = moved or [0.0, 0]
    if count != recorded[1] or not _close(relative, recorded[0]):
        raise ModelError(
            f"{path}: tensor {name!r} is not as recorded: {count:,} weights differ from {base} where {recorded[1]:,} "
            f"are recorded (relative change {relative}, recorded {recorded[0]})"
        )


def _close(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and abs(one - other) <= CLOSE * abs(other))


def _delta(found: _Found, model: Model) -> str:
    """Applied to its base a delta gives the model it says, and changes what it says."""
    before = model.network.state_dict()
    after = applied(before, found.tensors)
    changed = (found.provenance or {})["changed"]
    for name in after:
        _as_recorded(found.path, name, change(before[name], after[name]), changed.get(name), "the base")
    if hash_tensors(after) != found.header["hash"]:
        raise ModelError(f"{found.path}: applied to its base it does not give the model it was made for")
    return f"applied to its base it gives the cleaned model bit for bit, {len(changed)} tensors changed as recorded"


def _lora(found: _Found, model: Model) -> str:
    """A LoRA fits the layers of its base that it says; what it adds is an approximation, and is not compared."""
    layers = found.provenance["lora"]["layers"] if found.provenance else 0
    downs = [name for name in found.tensors if name.endswith(("lora_down.weight", "lora_A.weight"))]
    if len(downs) != layers:
        raise ModelError(f"{found.path} has {len(downs)} layers, {layers} are recorded")
    shapes = {tuple(tensor.shape) for name, tensor in model.network.state_dict().items() if name.endswith(".weight")}
    for name in downs:
        up = name.replace("lora_down", "lora_up").replace("lora_A", "lora_B")
        shape = (len(found.tensors[up]), *found.tensors[name].shape[1:])
        if shape not in shapes:
            raise ModelError(f"{found.path}: tensor {name!r} fits no layer of the base")
    return f"its {layers} layers fit the base; a LoRA approximates, so its weights are not compared"


def _hashed(found: _Found) -> str:
    """Every recorded hash, computed again."""
    provenance = found.provenance or {}
    recorded = provenance["sha256"]
    again = hashes(found.form, found.tensors, provenance["changed"], tuple(recorded))
    for group, wanted in recorded.items():
        if again[group] != wanted:
            which = {"unchanged": "the tensors that did not change", "all": "its tensors"}.get(group, f"the {group}")
            raise ModelError(f"{found.path}: {which} are not what was written (SHA-256 differs): the file was altered")
    return f"{len(recorded)} recorded hashes hold"


def _mask(found: _Found, base: str | None) -> dict[str, Any]:
    """A mask fits its model and was made for its weights."""
    mask = Mask.load(found.path)
    checked = [f"{mask.selected:,} of {mask.total:,} weights may move (density {mask.density:.6g})"]
    if base is not None:
        model, _ = _base(base)
        mask.check(model.network)
        if mask.provenance.get("model_hash") != model.hash:
            raise ModelError(f"{found.path} was made for other weights than those of --base {base}")
        checked.append(f"it was made for the weights of {base}")
    answer = _answer(found, base is not None, checked)
    return {**answer, "provenance": json.loads(json.dumps(mask.provenance))}
