"""Which tensor is which: the names of Stable Diffusion's networks in diffusers and in the original repositories.

Both sets of names follow from the network's configuration, so nothing here needs weights. The original layouts are
those of CompVis/latent-diffusion (UNet and VAE), openai/CLIP as packed by transformers, mlfoundations/open_clip, and
Stability-AI/generative-models for SDXL's conditioners.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

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
