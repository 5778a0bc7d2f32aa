"""Writers: one for each format in which a cleaned model is exported, with its provenance and its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from erasure.core.distributed import device
from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.files import atomic_folder, require_disk_space, write_text
from erasure.core.provenance import KEY, SIDECAR, LoraReport, Provenance, header_text, write_sidecar
from erasure.exporting.components import (
    Facts,
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
SD_ONLY = ("single-file", "unet", "lora")
OF_UNET = ("unet", "delta", "lora")


@dataclass(frozen=True)
class Cleaned:
    """A cleaned model, its original, and what is known of both; `template` is the original's single file."""

    base: Original
    model: Model
    provenance: Provenance
    template: Path | None = None

    def dtypes(self, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
        """The dtype each component is written in: the one given, or else the original's."""
        own = self.base.dtypes if isinstance(self.model, StableDiffusion) else {}
        return {part: dtype or getattr(torch, own.get(part, "float32")) for part in states_of(self.model)}

    def network_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        """The dtype the network is written in: the one given, or else the original's."""
        return next(iter(self.dtypes(dtype).values()))

    def stable_diffusion(self, format: str) -> StableDiffusion:
        """The model; raises NotApplicableError for a family that has no files of `format`."""
        if not isinstance(self.model, StableDiffusion) or not self.model.one_file:
            raise NotApplicableError(
                f"--format {format} is for Stable Diffusion 1, 2 and XL, this is a {self.model.family} model: "
                "take diffusers, safetensors or delta"
            )
        return self.model

    @property
    def part(self) -> str:
        """The component that the run changed."""
        states = states_of(self.model)
        return next(iter(states)) if self.provenance.get("moves", "network") == "network" else "text_encoder"

    @property
    def before(self) -> Mapping[str, Tensor]:
        """The original's tensors of that component, float32."""
        return as_written(self.base.states[self.part], lambda _: torch.float32)

    @property
    def after(self) -> Mapping[str, Tensor]:
        """The cleaned model's tensors of that component."""
        return states_of(self.model)[self.part]

    def changed(self) -> dict[str, Tensor]:
        """The tensors of that component that differ from the original's, float32."""
        before = self.before
        return {name: t for name, t in self.after.items() if not torch.equal(as_bits(before[name]), as_bits(t))}


@dataclass(frozen=True)
class ExportOptions:
    """How a format is written, where it leaves a choice; `dtype` None is the original's."""

    dtype: torch.dtype | None = None
    rank: int = 8
    lora_keys: str = "kohya"


Writer = Callable[[Cleaned, Path, ExportOptions], Provenance]


def write(format: str, cleaned: Cleaned, target: Path, options: ExportOptions) -> Provenance:
    """Write `cleaned` to `target` in one of FORMATS; returns its provenance, with what changed and the hashes.

    Raises what `check` does.
    """
    return _WRITERS[check(format, cleaned, target, options)](cleaned, target, options)


def check(format: str, cleaned: Cleaned, target: Path, options: ExportOptions) -> str:
    """The format that is written for `format`, before anything is computed.

    Raises NotApplicableError for a format that the family or the changed part does not have, OptionError for a dtype
    that the format does not have, OutputError when there is not enough disk space for `target`.
    """
    if format == "safetensors" and isinstance(cleaned.model, StableDiffusion) and cleaned.model.one_file:
        format = "single-file"
    _check_dtype(format, cleaned.model, options.dtype)
    if format in SD_ONLY:
        cleaned.stable_diffusion(format)
    if format in OF_UNET and cleaned.provenance.get("moves") == "text encoder":
        raise NotApplicableError(
            f"--format {format} holds the UNet, and {cleaned.provenance['method']} changed the text encoder alone: "
            "take diffusers or single-file"
        )
    size = _size(format, cleaned, options)
    require_disk_space(target.parent, size, f"--format {format}", "give --out on another disk")
    return format


def _check_dtype(format: str, model: Model, dtype: torch.dtype | None) -> None:
    if dtype is None or (format != "delta" and isinstance(model, StableDiffusion)):
        return
    what = "a delta, which is exact" if format == "delta" else f"a {model.family} model, kept in float32"
    raise OptionError(f"--dtype has no meaning for {what}: leave it out")


def _size(format: str, cleaned: Cleaned, options: ExportOptions) -> int:
    """Bytes that a format takes, from shapes and counts alone; of a delta and a LoRA, at most about so many."""
    states, dtypes = states_of(cleaned.model), cleaned.dtypes(options.dtype)
    network = next(iter(states.values()))
    weights = sum(tensor.numel() for tensor in network.values())
    if format == "delta":  # the values, and a bit for each weight that says whether it has one
        return 4 * cleaned.provenance.get("changed_weights", weights) + weights // 8
    if format == "lora":
        sides = [(len(tensor), tensor[0].numel()) for tensor in network.values() if tensor.dim() in (2, 4)]
        return (options.dtype or torch.float32).itemsize * sum(min(options.rank, *pair) * sum(pair) for pair in sides)
    if format == "single-file" and cleaned.template is not None:
        raw = raw_tensors(cleaned.template)
        return sum(_bytes(raw[name], options.dtype) for name in raw if not name.startswith(single_file.AVERAGED))
    parts = states if format in ("diffusers", "single-file") else dict([next(iter(states.items()))])
    return sum(_bytes(tensor, dtypes[part]) for part, state in parts.items() for tensor in state.values())


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype if dtype and tensor.is_floating_point() else tensor.dtype).itemsize


def _same(dtype: torch.dtype, _: str) -> torch.dtype:
    return dtype


def _described(
    cleaned: Cleaned, format: str, dtype: torch.dtype, facts: Facts, lora: LoraReport | None = None
) -> Provenance:
    """The cleaned model's provenance with what is true of the exported file."""
    own = {"family": cleaned.model.family, "format": format, "dtype": str(dtype).removeprefix("torch.")}
    return cast(Provenance, {**cleaned.provenance, **own, **facts, **({"lora": lora} if lora else {})})


def _as_file(target: Path, provenance: Provenance, written: Callable[[Mapping[str, str]], None]) -> Provenance:
    """Write a file through `written`, which takes header metadata; then its record and its card beside it."""
    written({KEY: header_text(provenance)})
    write_sidecar(target.with_name(target.name + ".json"), provenance)
    write_text(target.with_name(target.name + ".md"), card(provenance, target.name))
    return provenance


def _diffusers(cleaned: Cleaned, target: Path, options: ExportOptions) -> Provenance:
    model, dtypes = cleaned.model, cleaned.dtypes(options.dtype)

    def dtype_of(name: str) -> torch.dtype | None:
        return dtypes.get(component_of("diffusers", name))

    diff = TensorDiff(
        "diffusers",
        as_written(in_folder(cleaned.base), dtype_of),
        as_written(in_folder(model), dtype_of),
    )
    provenance = _described(cleaned, "diffusers", cleaned.network_dtype(options.dtype), diff.facts())
    if isinstance(model, StableDiffusion):
        model.info["dtypes"] = {part: str(dtype).removeprefix("torch.") for part, dtype in dtypes.items()}
    with atomic_folder(target) as temporary:
        model.save(temporary)
        write_sidecar(temporary / SIDECAR, provenance)
        write_text(temporary / "README.md", card(provenance, target.name))
    return provenance


def _single_file(cleaned: Cleaned, target: Path, options: ExportOptions) -> Provenance:
    model = cleaned.stable_diffusion("single-file")
    if cleaned.template is not None:
        return _patched(cleaned, cleaned.template, target, options)
    dtypes, configs = cleaned.dtypes(options.dtype), configs_of(model)

    def dtype_of(name: str) -> torch.dtype | None:
        return dtypes.get(component_of("single-file", name))

    sides = (cleaned.base.states, states_of(model))
    before, after = (as_written(in_one_file(states, configs), dtype_of) for states in sides)
    facts = TensorDiff("single-file", before, after).facts()
    own = {**single_file.own_metadata(configs), **info_metadata(model.info)}
    return _as_file(
        target,
        _described(cleaned, "single-file", cleaned.network_dtype(options.dtype), facts),
        lambda metadata: write_ordered(target, after, {**own, **metadata}),
    )


def _patched(cleaned: Cleaned, template: Path, target: Path, options: ExportOptions) -> Provenance:
    """The original's own file with the changed tensors in it."""
    file, raw, changed = single_file.read(template), raw_tensors(template), cleaned.changed()
    part = cleaned.part
    if changed and part != "unet":  # whole: SD 2 keeps query, key and value of its text encoder in one
        changed = dict(cleaned.after)
    stale = single_file.AVERAGED if changed and part == "unet" else "\0"  # the averaged UNet is not erased from
    kept = {name: raw[name] for name in raw if not name.startswith(stale)}
    replaced = original_tensors(file.kind, part, changed, file.configs[part])
    replaced = {name if name in kept else name.replace(TEXT_MODEL, "", 1): tensor for name, tensor in replaced.items()}

    def dtype_of(name: str) -> torch.dtype:
        return options.dtype or kept[name].dtype

    before, after = as_written(kept, dtype_of), as_written({**kept, **replaced}, dtype_of)
    facts = TensorDiff("single-file", before, after).facts()
    own = {**_prediction_type(file, cleaned.model), **info_metadata(cleaned.model.info)}
    return _as_file(
        target,
        _described(cleaned, "single-file", options.dtype or file.dtype, facts),
        lambda metadata: single_file.patch(template, target, {part: changed}, {**own, **metadata}, options.dtype),
    )


def _prediction_type(file: single_file.SingleFile, model: Model) -> dict[str, str]:
    """Metadata that says what the UNet predicts, for a file that does not say it itself."""
    if file.velocity is not None:
        return {}
    velocity = model.noise_scheduler.config.prediction_type == "v_prediction"  # type: ignore[attr-defined]
    return {"modelspec.prediction_type": "v" if velocity else "epsilon"}


def _network(format: str) -> Writer:
    def written(cleaned: Cleaned, target: Path, options: ExportOptions) -> Provenance:
        dtype = cleaned.network_dtype(options.dtype)
        sides = (cleaned.base.network, cleaned.model.network.state_dict())
        before, after = (as_written(state, partial(_same, dtype)) for state in sides)
        provenance = _described(cleaned, format, dtype, TensorDiff(format, before, after).facts())
        return _as_file(target, provenance, lambda metadata: write_ordered(target, after, {"format": "pt", **metadata}))

    return written


def _of_network(cleaned: Cleaned, tensors: Mapping[str, Tensor], format: str) -> Facts:
    """What changed in the network, for formats that hold something computed from it."""
    changed = TensorDiff("unet", cleaned.base.network, cleaned.model.network.state_dict()).changed
    return {"changed": changed, "sha256": hashes(format, tensors, {}, ("all",))}


def _delta(cleaned: Cleaned, target: Path, options: ExportOptions) -> Provenance:
    after = cleaned.model.network.state_dict()
    tensors = difference(cleaned.base.network, after)
    provenance = _described(cleaned, "delta", torch.float32, _of_network(cleaned, tensors, "delta"))
    names = dict.fromkeys(key.partition("::")[0] for key in tensors)
    header = {
        "format": DELTA,
        "base_hash": provenance["base_hash"],
        "hash": provenance["hash"],
        "shapes": json.dumps({name: list(after[name].shape) for name in names}),
    }
    return _as_file(target, provenance, lambda metadata: write_ordered(target, tensors, {**header, **metadata}))


def _lora(cleaned: Cleaned, target: Path, options: ExportOptions) -> Provenance:
    configs = configs_of(cleaned.stable_diffusion("lora"))
    kind, dtype = single_file.kind_of_configs(configs), options.dtype or torch.float32
    named([], options.lora_keys, kind, configs["unet"])  # refuses an unknown name before the work
    layers, report = decomposed(cleaned.base.network, cleaned.model.network.state_dict(), options.rank, dtype, device())
    tensors = named(layers, options.lora_keys, kind, configs["unet"])
    facts = _of_network(cleaned, tensors, "lora")
    provenance = _described(cleaned, "lora", dtype, facts, {"keys": options.lora_keys, **report})
    header = {"format": "pt", **(kohya_metadata(kind, options.rank) if options.lora_keys == "kohya" else {})}
    return _as_file(target, provenance, lambda metadata: write_tensors(target, tensors, {**header, **metadata}))


_WRITERS: dict[str, Writer] = {
    "diffusers": _diffusers,
    "single-file": _single_file,
    "safetensors": _network("safetensors"),
    "unet": _network("unet"),
    "delta": _delta,
    "lora": _lora,
}
