"""Tensors of Stable Diffusion 1, 2 and XL in the original single-file layout and in diffusers' layout, both ways.

The map is a bijection: what goes one way and comes back is the same, bit for bit. A file may hold more than the model
needs (SD 2's last text layer, averaged weights, a noise schedule); those tensors have no name in diffusers and are left
to whoever copies the file.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erasure.errors import ModelError
from erasure.models._layout_names import Slot, clip_slots, open_clip_slots, unet_slots, vae_slots

COMPONENTS = {
    "sd1": ("unet", "vae", "text_encoder"),
    "sd2": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
PREFIXES = {
    ("sd1", "text_encoder"): "cond_stage_model.transformer.",
    ("sd2", "text_encoder"): "cond_stage_model.model.",
    ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.",
    ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
}
TEXT_MODEL = "text_model."


def prefix_of(kind: str, component: str) -> str:
    """How the names of a component begin in an original file of that kind (sd1, sd2 or sdxl)."""
    shared = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
    return shared.get(component) or PREFIXES[kind, component]


def original_names(kind: str, component: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The original name of every tensor of the component, by its name in diffusers or transformers.

    The query, key and value of an open_clip layer share one original name. Raises ModelError for a configuration whose
    names do not follow these layouts.
    """
    return {slot.name: slot.original for slot in slots(kind, component, config)}


def original_tensors(
    kind: str, component: str, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors of `state` in the original layout, whole or in part, in the network's order.

    Raises ModelError for a name the network does not have, and for a query without its key and value where the file
    keeps the three in one tensor.
    """
    given = {name.removeprefix(TEXT_MODEL): tensor for name, tensor in state.items()}
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for slot in slots(kind, component, config):
        tensor = given.pop(slot.name.removeprefix(TEXT_MODEL), None)
        if tensor is None:
            continue
        if slot.form == "third":
            thirds[slot.original][slot.part] = tensor
            found[slot.original] = tensor  # its place in the order
        else:
            found[slot.original] = _to_original(slot, tensor)
    if given:
        raise ModelError(f"the {component} of a {kind} model has no tensor {sorted(given)[0]!r}")
    for original, parts in thirds.items():
        if len(parts) < 3:
            raise ModelError(f"{original} holds query, key and value in one: give all three of the {component}'s layer")
        found[original] = torch.cat([parts[0], parts[1], parts[2]])
    return found


def diffusers_tensors(
    kind: str, component: str, original: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The component's tensors under the names its class loads, from an original file's; what else it holds is ignored.

    Where nothing has to be turned or cut, the tensors are those given. Raises ModelError naming the first one missing.
    """
    found = {}
    for slot in slots(kind, component, config):
        if slot.original not in original:
            raise ModelError(f"the {component} of this {kind} file lacks {slot.original!r}: the file is incomplete")
        found[slot.name] = _to_diffusers(slot, original[slot.original])
    return found


def slots(kind: str, component: str, config: Mapping[str, Any]) -> list[Slot]:
    """Every tensor of the component: both full names, and how it lies in the original file."""
    if component not in COMPONENTS.get(kind, ()):
        raise ModelError(f"{kind} models have no {component}: expected one of {', '.join(COMPONENTS.get(kind, ()))}")
    try:
        found = list(_bare_slots(kind, component, config))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelError(f"the {component} configuration is incomplete or of another network: {error!r}") from error
    start = prefix_of(kind, component)
    strip = component == "text_encoder" and not _wrapped()
    return [
        slot._replace(name=slot.name.removeprefix(TEXT_MODEL) if strip else slot.name, original=start + slot.original)
        for slot in found
    ]


def _bare_slots(kind: str, component: str, config: Mapping[str, Any]) -> Any:
    if component == "unet":
        return unet_slots(config)
    if component == "vae":
        return vae_slots(config)
    if PREFIXES[kind, component].endswith(".model."):
        return open_clip_slots(config, projection=component == "text_encoder_2")
    return clip_slots(config)


@functools.cache
def _wrapped() -> bool:
    """Whether this version of transformers keeps CLIPTextModel's tensors under `text_model.`; from 5.6 it does not."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1))
    return all(name.startswith(TEXT_MODEL) for name in model.state_dict())


def _to_original(slot: Slot, tensor: Tensor) -> Tensor:
    if slot.form == "conv":
        return tensor[:, :, None, None]  # (c, d) -> (c, d, 1, 1)
    return tensor.T.contiguous() if slot.form == "transposed" else tensor


def _to_diffusers(slot: Slot, tensor: Tensor) -> Tensor:
    if slot.form == "conv":
        return tensor.reshape(tensor.shape[:2])  # (c, d, 1, 1), or (c, d, 1) as some tools write it -> (c, d)
    if slot.form == "transposed":
        return tensor.T.contiguous()
    if slot.form == "third":
        return tensor.chunk(3)[slot.part]
    return tensor
