"""A Stable Diffusion model from one file in the original layout, .safetensors or .ckpt, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from erasure.core.errors import ModelError
from erasure.core.files import parse_object
from erasure.core.logging import log_user_once
from erasure.formats import single_file
from erasure.formats.ldm_detect import TITLES
from erasure.formats.safetensors_io import check_finite
from erasure.formats.safetensors_stream import is_pickle, read_header
from erasure.models.info import ModelInfo
from erasure.models.sdxl import SDXL
from erasure.models.stable_diffusion import StableDiffusion, noise_scheduler

INFO = "erasure.info"  # metadata: what the erasure.json of a folder says
# Facts about one copy on disk, or advice for the model before an erasure: not true of the next copy.
OWN = ("dtypes", "weights_dtype", "erase", "max_shard_size", "family")
# What our other files are, by their `format`, and what to do with them.
OURS = {
    "erasure-delta": ("a delta", "apply it with `erasure export --apply`"),
    "erasure-mask": ("a mask", "give it to --mask"),
}


def load_single(path: Path) -> StableDiffusion:
    """The model in a single file, float32, each component complete and finite; says what was recognised.

    `info["dtypes"]` has the number format of each component. Raises ModelError naming what the file is instead.
    """
    _refuse_ours(path)
    file = single_file.read(path)
    family = SDXL if file.kind == "sdxl" else StableDiffusion
    names = ("unet", "vae", *family.encoders)
    modules: dict[str, Any] = {name: _filled(name, file) for name in names}
    network = modules.pop("unet")
    settled = single_file.settled(file, network)
    if settled.configs["unet"] != file.configs["unet"]:  # SD 2 for velocity has another size and attention
        network = _filled("unet", settled)
    file = settled
    for name in family.tokenizers:
        modules[name] = file.tokenizer(name)
    modules["scheduler_config"] = file.configs["scheduler"]
    index = single_file.shipped_configs(file.kind)["model_index"]
    info: ModelInfo = {
        "pipeline": {key: value for key, value in index.items() if isinstance(value, bool)},
        **_info(file),
        "dtypes": file.dtypes,
    }
    predicts = "velocity" if file.velocity else "epsilon"
    title = TITLES[file.kind] + ("" if file.kind == "sdxl" else ".x")
    log_user_once(f"{path.name}: {title}, {info['dtypes']['unet']}, {predicts}")
    return family(network.requires_grad_(True), noise_scheduler(file.configs["scheduler"]), modules, info, str(path))


def info_metadata(info: ModelInfo) -> dict[str, str]:
    """Metadata by which `load_single` gives back what a model's `info` says of more than one copy of it."""
    return {INFO: json.dumps({key: value for key, value in info.items() if key not in OWN}, sort_keys=True)}


def _refuse_ours(path: Path) -> None:
    """Name a file of this package that is no model."""
    if path.suffix == ".safetensors" and not is_pickle(path):
        kind = read_header(path)[1].get("format", "").rpartition("-")[0]
        if kind in OURS:
            what, advice = OURS[kind]
            raise ModelError(f"{path} is {what}, not a model: {advice}")


def _filled(name: str, file: single_file.SingleFile) -> nn.Module:
    network: nn.Module = single_file.empty(name, file.configs[name])
    state = {key: tensor.to(torch.float32, copy=True) for key, tensor in file.components[name].items()}
    network.load_state_dict(state, strict=True, assign=True)
    for owner, key, buffer in _unfilled(network):
        if key != "position_ids":
            raise ModelError(f"{file.path}: the {name} has a buffer {key!r} that no file holds")
        owner.register_buffer(key, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    check_finite(network, file.path)
    return network.eval().requires_grad_(False)


def _unfilled(network: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Buffers that are no part of a checkpoint, with the modules they belong to."""
    return [
        (module, name, buffer)
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_meta
    ]


def _info(file: single_file.SingleFile) -> ModelInfo:
    """What the file carries of a folder's erasure.json; empty for files of others."""
    found = parse_object(file.metadata.get(INFO, "{}"), f"{file.path}: its metadata {INFO!r}", ModelError)
    return cast(ModelInfo, {key: value for key, value in found.items() if key not in OWN})
