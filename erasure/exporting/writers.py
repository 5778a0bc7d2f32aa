"""The forms a cleaned model is exported in: each says what it holds, then writes it with its provenance and card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasure.core.distributed import device
from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.files import atomic_folder, require_disk_space, write_json, write_text
from erasure.core.provenance import KEY, SIDECAR, header_text
from erasure.exporting.components import (
    Original,
    TensorDiff,
    as_written,
    component_of,
    configs_of,
    hashes,
    in_folder,
    in_one_file,
    raw_tensors,
    states_of,
)
from erasure.exporting.model_card import card
from erasure.formats import single_file
from erasure.formats.delta import DELTA, as_bits, difference
from erasure.formats.ldm_layout import TEXT_MODEL, original_tensors
from erasure.formats.lora import decomposed, kohya_metadata, named
from erasure.formats.safetensors_io import write_tensors
from erasure.formats.safetensors_stream import write_ordered
from erasure.models import Model
from erasure.models.from_single_file import info_metadata
from erasure.models.stable_diffusion import StableDiffusion

FORMATS = ("diffusers", "single-file", "safetensors", "unet", "delta", "lora")


@dataclass(frozen=True)
class Cleaned:
    """A cleaned model, the one it was made from, and what is known of both; `template` is the base's single file."""

    base: Original
    model: Model
    provenance: dict[str, Any]
    template: Path | None = None

    def formats(self, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
        """The number format of each component: the one that is asked for, or what the base came in."""
        own = self.base.dtypes if isinstance(self.model, StableDiffusion) else {}
        return {part: dtype or getattr(torch, own.get(part, "float32")) for part in states_of(self.model)}

    def network_format(self, dtype: torch.dtype | None) -> torch.dtype:
        """The number format of the network, asked for or the base's."""
        return next(iter(self.formats(dtype).values()))

    def stable_diffusion(self, form: str) -> StableDiffusion:
        """The model; raises NotApplicableError when it is of another family, for which `form` has no meaning."""
        if not isinstance(self.model, StableDiffusion) or not self.model.one_file:
            raise NotApplicableError(
                f"--format {form} is for Stable Diffusion 1, 2 and XL, this is a {self.model.family} model: "
                "take diffusers, safetensors or delta"
            )
        return self.model

    @property
    def part(self) -> str:
        """The component that the run moved."""
        states = states_of(self.model)
        return next(iter(states)) if self.provenance.get("moves", "network") == "network" else "text_encoder"

    @property
    def before(self) -> Mapping[str, Tensor]:
        """The base's tensors of that component, float32."""
        return as_written(self.base.states[self.part], lambda _: torch.float32)

    @property
    def after(self) -> Mapping[str, Tensor]:
        """The cleaned model's."""
        return states_of(self.model)[self.part]

    def changed(self) -> dict[str, Tensor]:
        """The tensors of that component that differ from the base's, float32."""
        before = self.before
        return {name: t for name, t in self.after.items() if not torch.equal(as_bits(before[name]), as_bits(t))}


@dataclass(frozen=True)
class ExportOptions:
    """How a form is written, where it leaves a choice."""

    dtype: torch.dtype | None = None
    rank: int = 8
    lora_keys: str = "kohya"


Writing = Callable[[Mapping[str, str]], None]


def write(form: str, cleaned: Cleaned, target: Path, manner: ExportOptions) -> dict[str, Any]:
    """Write `cleaned` to `target` as one of FORMATS; returns its provenance, with what changed and the hashes.

    Raises what `settled` does.
    """
    return _FORMS[settled(form, cleaned, target, manner)](cleaned, target, manner)


def settled(form: str, cleaned: Cleaned, target: Path, manner: ExportOptions) -> str:
    """The form that will be written for `form`, before anything is computed.

    Raises NotApplicableError for a form that the family or what moved has not, OptionError for a choice that the form
    has not, OutputError when the disk of `target` has no room for it.
    """
    if form == "safetensors" and isinstance(cleaned.model, StableDiffusion) and cleaned.model.one_file:
        form = "single-file"
    if manner.dtype is not None and (form == "delta" or not isinstance(cleaned.model, StableDiffusion)):
        what = "a delta, which is exact" if form == "delta" else f"a {cleaned.model.family} model, kept in float32"
        raise OptionError(f"--dtype has no meaning for {what}: leave it out")
    if form in ("single-file", "unet", "lora"):
        cleaned.stable_diffusion(form)
    if form in ("unet", "delta", "lora") and cleaned.provenance.get("moves") == "text encoder":
        raise NotApplicableError(
            f"--format {form} holds the UNet, and {cleaned.provenance['method']} moved the text encoder alone: "
            "take diffusers or single-file"
        )
    require_disk_space(target.parent, _size(form, cleaned, manner), f"--format {form}", "give --out on another disk")
    return form


def _size(form: str, cleaned: Cleaned, manner: ExportOptions) -> int:
    """Bytes that a form takes, from shapes and counts alone; of a delta and a LoRA, at most about so many."""
    states, formats = states_of(cleaned.model), cleaned.formats(manner.dtype)
    network = next(iter(states.values()))
    weights = sum(tensor.numel() for tensor in network.values())
    if form == "delta":  # the values, and a bit for each weight that says whether it has one
        return 4 * cleaned.provenance.get("changed_weights", weights) + weights // 8
    if form == "lora":
        sides = [(len(tensor), tensor[0].numel()) for tensor in network.values() if tensor.dim() in (2, 4)]
        return (manner.dtype or torch.float32).itemsize * sum(min(manner.rank, *pair) * sum(pair) for pair in sides)
    if form == "single-file" and cleaned.template is not None:
        raw = raw_tensors(cleaned.template)
        return sum(_bytes(raw[name], manner.dtype) for name in raw if not name.startswith(single_file.AVERAGED))
    parts = states if form in ("diffusers", "single-file") else dict([next(iter(states.items()))])
    return sum(_bytes(tensor, formats[part]) for part, state in parts.items() for tensor in state.values())


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype if dtype and tensor.is_floating_point() else tensor.dtype).itemsize


def _same(dtype: torch.dtype, _: str) -> torch.dtype:
    return dtype


def _described(cleaned: Cleaned, form: str, dtype: torch.dtype, **facts: Any) -> dict[str, Any]:
    return {
        **cleaned.provenance,
        "family": cleaned.model.family,
        "format": form,
        "dtype": str(dtype).removeprefix("torch."),
        **facts,
    }


def _as_file(target: Path, provenance: dict[str, Any], writing: Writing) -> dict[str, Any]:
    writing({KEY: header_text(provenance)})
    write_json(target.with_name(target.name + ".json"), provenance)
    write_text(target.with_name(target.name + ".md"), card(provenance, target.name))
    return provenance


def _diffusers(cleaned: Cleaned, target: Path, manner: ExportOptions) -> dict[str, Any]:
    model, formats = cleaned.model, cleaned.formats(manner.dtype)

    def dtype_of(name: str) -> torch.dtype | None:
        return formats.get(component_of("diffusers", name))

    content = TensorDiff(
        "diffusers",
        as_written(in_folder(cleaned.base), dtype_of),
        as_written(in_folder(model), dtype_of),
    )
    provenance = _described(cleaned, "diffusers", cleaned.network_format(manner.dtype), **content.facts())
    if isinstance(model, StableDiffusion):
        model.info["dtypes"] = {part: str(dtype).removeprefix("torch.") for part, dtype in formats.items()}
    with atomic_folder(target) as temporary:
        model.save(temporary)
        write_json(temporary / SIDECAR, provenance)
        write_text(temporary / "README.md", card(provenance, target.name))
    return provenance


def _single_file(cleaned: Cleaned, target: Path, manner: ExportOptions) -> dict[str, Any]:
    model = cleaned.stable_diffusion("single-file")
    if cleaned.template is not None:
        return _patched(cleaned, cleaned.template, target, manner)
    formats, configs = cleaned.formats(manner.dtype), configs_of(model)

    def dtype_of(name: str) -> torch.dtype | None:
        return formats.get(component_of("single-file", name))

    sides = (cleaned.base.states, states_of(model))
    before, after = (as_written(in_one_file(states, configs), dtype_of) for states in sides)
    provenance = _described(
        cleaned, "single-file", cleaned.network_format(manner.dtype), **TensorDiff("single-file", before, after).facts()
    )

    own = {**single_file.own_metadata(configs), **info_metadata(model.info)}
    return _as_file(target, provenance, lambda metadata: write_ordered(target, after, {**own, **metadata}))


def _patched(cleaned: Cleaned, template: Path, target: Path, manner: ExportOptions) -> dict[str, Any]:
    """The base's own file with the changed tensors in it."""
    file, raw, changed = single_file.read(template), raw_tensors(template), cleaned.changed()
    part = cleaned.part
    if changed and part != "unet":  # whole: SD 2 keeps query, key and value of its text encoder in one
        changed = dict(cleaned.after)
    stale = bool(changed) and part == "unet"  # a second, averaged UNet would still have what was erased
    kept = {name: raw[name] for name in raw if not (stale and name.startswith(single_file.AVERAGED))}
    moved = original_tensors(file.kind, part, changed, file.configs[part])
    moved = {name if name in kept else name.replace(TEXT_MODEL, "", 1): tensor for name, tensor in moved.items()}

    def dtype_of(name: str) -> torch.dtype:
        return manner.dtype or kept[name].dtype

    before, after = as_written(kept, dtype_of), as_written({**kept, **moved}, dtype_of)
    facts = TensorDiff("single-file", before, after).facts()
    told = {}
    if file.velocity is None:  # the file does not say, its network did
        velocity = cleaned.model.noise_scheduler.config.prediction_type == "v_prediction"  # type: ignore[attr-defined]
        told["modelspec.prediction_type"] = "v" if velocity else "epsilon"
    told |= info_metadata(cleaned.model.info)
    return _as_file(
        target,
        _described(cleaned, "single-file", manner.dtype or file.dtype, **facts),
        lambda metadata: single_file.patch(template, target, {part: changed}, {**told, **metadata}, manner.dtype),
    )


def _network(form: str) -> Callable[[Cleaned, Path, ExportOptions], dict[str, Any]]:
    def written(cleaned: Cleaned, target: Path, manner: ExportOptions) -> dict[str, Any]:
        dtype = cleaned.network_format(manner.dtype)
        sides = (cleaned.base.network, cleaned.model.network.state_dict())
        before, after = (as_written(state, partial(_same, dtype)) for state in sides)
        provenance = _described(cleaned, form, dtype, **TensorDiff(form, before, after).facts())
        return _as_file(target, provenance, lambda metadata: write_ordered(target, after, {"format": "pt", **metadata}))

    return written


def _of_network(cleaned: Cleaned, tensors: Mapping[str, Tensor], form: str) -> dict[str, Any]:
    """What changed in the network, for forms that hold something made from it."""
    before, after = cleaned.base.network, cleaned.model.network.state_dict()
    changed = TensorDiff("unet", before, after).facts()["changed"]
    return {"changed": changed, "sha256": hashes(form, tensors, {}, ("all",))}


def _delta(cleaned: Cleaned, target: Path, manner: ExportOptions) -> dict[str, Any]:
    after = cleaned.model.network.state_dict()
    tensors = difference(cleaned.base.network, after)
    provenance = _described(cleaned, "delta", torch.float32, **_of_network(cleaned, tensors, "delta"))
    names = dict.fromkeys(key.partition("::")[0] for key in tensors)
    header = {
        "format": DELTA,
        "base_hash": provenance["base_hash"],
        "hash": provenance["hash"],
        "shapes": json.dumps({name: list(after[name].shape) for name in names}),
    }
    return _as_file(target, provenance, lambda metadata: write_ordered(target, tensors, {**header, **metadata}))


def _lora(cleaned: Cleaned, target: Path, manner: ExportOptions) -> dict[str, Any]:
    configs = configs_of(cleaned.stable_diffusion("lora"))
    kind, dtype = single_file.kind_of_configs(configs), manner.dtype or torch.float32
    named([], manner.lora_keys, kind, configs["unet"])  # an unknown name is refused before the work
    layers, report = decomposed(cleaned.base.network, cleaned.model.network.state_dict(), manner.rank, dtype, device())
    tensors = named(layers, manner.lora_keys, kind, configs["unet"])
    facts = _of_network(cleaned, tensors, "lora")
    provenance = _described(cleaned, "lora", dtype, **facts, lora={"keys": manner.lora_keys, **report})
    header = {"format": "pt", **(kohya_metadata(kind, manner.rank) if manner.lora_keys == "kohya" else {})}
    return _as_file(target, provenance, lambda metadata: write_tensors(target, tensors, {**header, **metadata}))


_FORMS: dict[str, Callable[[Cleaned, Path, ExportOptions], dict[str, Any]]] = {
    "diffusers": _diffusers,
    "single-file": _single_file,
    "safetensors": _network("safetensors"),
    "unet": _network("unet"),
    "delta": _delta,
    "lora": _lora,
}
