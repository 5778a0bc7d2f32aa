"""Tensors of Stable Diffusion 1, 2 and XL in the original single-file layout and in diffusers' layout, both ways.

The map is a bijection: what goes one way and comes back is the same, bit for bit. A file may hold more than the model
needs (SD 2's last text layer, averaged weights, a noise schedule); those tensors have no name in diffusers, and the
code that copies the file handles them.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from erasure.core.errors import ModelError

Form = Literal["same", "conv", "transposed", "third"]

WEIGHT_AND_BIAS = ("weight", "bias")
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


class Slot(NamedTuple):
    """One tensor: its name in diffusers, in the original file, and how its values lie there.

    `form` is "same"; "conv", a matrix (c, d) kept as a 1 x 1 convolution (c, d, 1, 1); "transposed"; or "third", of
    which `part` 0, 1, 2 are the query's, the key's and the value's rows of one fused tensor.
    """

    name: str
    original: str
    form: Form = "same"
    part: int = 0


def unet_slots(config: Mapping[str, Any]) -> Iterator[Slot]:
    """Tensors of a UNet2DConditionModel, beneath `model.diffusion_model.`."""
    yield from _both("time_embedding.linear_1", "time_embed.0")
    yield from _both("time_embedding.linear_2", "time_embed.2")
    if config.get("addition_embed_type") == "text_time":
        yield from _both("add_embedding.linear_1", "label_emb.0.0")
        yield from _both("add_embedding.linear_2", "label_emb.0.2")
    yield from _both("conv_in", "input_blocks.0.0")
    yield from _down_blocks(config)
    depth = _depths(config)[-1]
    yield from _resnet("mid_block.resnets.0", "middle_block.0", False)
    yield from _transformer("mid_block.attentions.0", "middle_block.1", depth)
    yield from _resnet("mid_block.resnets.1", "middle_block.2", False)
    yield from _up_blocks(config)
    yield from _both("conv_norm_out", "out.0")
    yield from _both("conv_out", "out.2")


def _down_blocks(config: Mapping[str, Any]) -> Iterator[Slot]:
    channels, depths = config["block_out_channels"], _depths(config)
    before, index = channels[0], 1
    for block, kind in enumerate(config["down_block_types"]):
        for layer in range(config["layers_per_block"]):
            ours, theirs = f"down_blocks.{block}", f"input_blocks.{index}"
            yield from _resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", before != channels[block])
            if "CrossAttn" in kind:
                yield from _transformer(f"{ours}.attentions.{layer}", f"{theirs}.1", depths[block])
            before, index = channels[block], index + 1
        if block < len(channels) - 1:
            yield from _both(f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{index}.0.op")
            index += 1


def _up_blocks(config: Mapping[str, Any]) -> Iterator[Slot]:
    channels, depths = config["block_out_channels"][::-1], _depths(config)[::-1]
    count, before, index = config["layers_per_block"] + 1, channels[0], 0
    for block, kind in enumerate(config["up_block_types"]):
        last = block == len(channels) - 1
        for layer in range(count):
            ours, theirs = f"up_blocks.{block}", f"output_blocks.{index}"
            skipped = channels[block] if layer < count - 1 else channels[min(block + 1, len(channels) - 1)]
            yield from _resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", before + skipped != channels[block])
            if "CrossAttn" in kind:
                yield from _transformer(f"{ours}.attentions.{layer}", f"{theirs}.1", depths[block])
            if layer == count - 1 and not last:
                place = 2 if "CrossAttn" in kind else 1
                yield from _both(f"{ours}.upsamplers.0.conv", f"{theirs}.{place}.conv")
            before, index = channels[block], index + 1


def _depths(config: Mapping[str, Any]) -> list[int]:
    """Transformer layers in each block's attention, from the first block down."""
    depth = config.get("transformer_layers_per_block", 1)
    return [depth] * len(config["block_out_channels"]) if isinstance(depth, int) else list(depth)


def _resnet(ours: str, theirs: str, shortcut: bool) -> Iterator[Slot]:
    for name, original in RESNET.items():
        if shortcut or name != "conv_shortcut":
            yield from _both(f"{ours}.{name}", f"{theirs}.{original}")


def _transformer(ours: str, theirs: str, depth: int) -> Iterator[Slot]:
    names = [f"{part}.{end}" for part in ("norm", "proj_in", "proj_out") for end in WEIGHT_AND_BIAS]
    for index in range(depth):
        block = f"transformer_blocks.{index}"
        for attention in ("attn1", "attn2"):
            names += [f"{block}.{attention}.{part}.weight" for part in ("to_q", "to_k", "to_v")]
            names += [f"{block}.{attention}.to_out.0.{end}" for end in WEIGHT_AND_BIAS]
        for part in ("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"):
            names += [f"{block}.{part}.{end}" for end in WEIGHT_AND_BIAS]
    return (Slot(f"{ours}.{name}", f"{theirs}.{name}") for name in names)


def vae_slots(config: Mapping[str, Any]) -> Iterator[Slot]:
    """Tensors of an AutoencoderKL, beneath `first_stage_model.`."""
    channels, layers = config["block_out_channels"], config.get("layers_per_block", 1)
    last = len(channels) - 1
    for side, blocks, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        order = channels if side == "encoder" else channels[::-1]
        before = order[0]
        yield from _both(f"{side}.conv_in", f"{side}.conv_in")
        for block, width in enumerate(order):
            number = block if side == "encoder" else last - block  # the original counts `up` from the last one
            ours, theirs = f"{side}.{blocks}_blocks.{block}", f"{side}.{blocks}.{number}"
            for layer in range(layers + (side == "decoder")):
                yield from _vae_resnet(f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}", before != width)
                before = width
            if block < last:
                yield from _both(f"{ours}.{sampler}rs.0.conv", f"{theirs}.{sampler}.conv")
        yield from _vae_middle(f"{side}.mid_block", f"{side}.mid", config.get("mid_block_add_attention", True))
        yield from _both(f"{side}.conv_norm_out", f"{side}.norm_out")
        yield from _both(f"{side}.conv_out", f"{side}.conv_out")
    for name in ("quant_conv", "post_quant_conv"):
        if config.get(f"use_{name}", True):
            yield from _both(name, name)


def _vae_resnet(ours: str, theirs: str, shortcut: bool) -> Iterator[Slot]:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield from _both(f"{ours}.{name}", f"{theirs}.{name}")
    if shortcut:
        yield from _both(f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut")


def _vae_middle(ours: str, theirs: str, attention: bool) -> Iterator[Slot]:
    yield from _vae_resnet(f"{ours}.resnets.0", f"{theirs}.block_1", False)
    if attention:
        yield from _both(f"{ours}.attentions.0.group_norm", f"{theirs}.attn_1.norm")
        for name, original in VAE_ATTENTION.items():
            yield Slot(f"{ours}.attentions.0.{name}.weight", f"{theirs}.attn_1.{original}.weight", "conv")
            yield Slot(f"{ours}.attentions.0.{name}.bias", f"{theirs}.attn_1.{original}.bias")
    yield from _vae_resnet(f"{ours}.resnets.1", f"{theirs}.block_2", False)


def clip_slots(config: Mapping[str, Any]) -> Iterator[Slot]:
    """Tensors of OpenAI's CLIP text model in transformers' own names, `text_model.` and all."""
    names = [f"text_model.embeddings.{part}_embedding.weight" for part in ("token", "position")]
    parts = [f"self_attn.{part}_proj" for part in "kvq"]
    for index in range(config["num_hidden_layers"]):
        for part in (*parts, *OPEN_CLIP_LAYER):
            names += [f"text_model.encoder.layers.{index}.{part}.{end}" for end in WEIGHT_AND_BIAS]
    names += [f"text_model.final_layer_norm.{end}" for end in WEIGHT_AND_BIAS]
    return (Slot(name, name) for name in names)


def open_clip_slots(config: Mapping[str, Any], projection: bool) -> Iterator[Slot]:
    """Tensors of open_clip's text transformer; `projection` says whether its last matrix belongs to the model."""
    yield Slot("text_model.embeddings.token_embedding.weight", "token_embedding.weight")
    yield Slot("text_model.embeddings.position_embedding.weight", "positional_embedding")
    for index in range(config["num_hidden_layers"]):
        ours, theirs = f"text_model.encoder.layers.{index}", f"transformer.resblocks.{index}"
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            for end in WEIGHT_AND_BIAS:
                yield Slot(f"{ours}.self_attn.{name}.{end}", f"{theirs}.attn.in_proj_{end}", "third", part)
        for name, original in OPEN_CLIP_LAYER.items():
            yield from _both(f"{ours}.{name}", f"{theirs}.{original}")
    yield from _both("text_model.final_layer_norm", "ln_final")
    if projection:
        yield Slot("text_projection.weight", "text_projection", "transposed")


def _both(ours: str, theirs: str) -> Iterator[Slot]:
    return (Slot(f"{ours}.{end}", f"{theirs}.{end}") for end in WEIGHT_AND_BIAS)


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
