"""Recognise a single model file by the names and shapes of its tensors alone.

The file's name and metadata are not trusted, except where shapes do not distinguish two models: whether the UNet
predicts noise or velocity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erasure.core.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {
    "cond_stage_model.transformer.": "sd1",
    "cond_stage_model.model.": "sd2",
    "conditioner.embedders.1.model.": "sdxl",
}
WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
TITLES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "SDXL"}
FULL = "give a full checkpoint of Stable Diffusion 1, 2 or XL"
FOLDER = "give its pipeline folder"
MERGE = "merge it into its model first"

LORA = (
    *("lora_up", "lora_down", "lora_A", "lora_B", "lora_unet_", "lora_te"),
    *("_lora.up.", "_lora.down.", ".lora.up.", ".lora.down.", "lora_linear_layer"),  # diffusers, before PEFT
)
# Pieces of names that only one sort of file has, what that file is, and what to do; the first match is reported.
FOREIGN = (
    (("hada_w1",), "a LoHa (a LyCORIS adapter)", MERGE),  # before LoRA, whose names for layers they share
    (("lokr_w1",), "a LoKr (a LyCORIS adapter)", MERGE),
    (("oft_diag", "oft_blocks"), "an OFT (a LyCORIS adapter)", MERGE),
    (LORA, "a LoRA", MERGE),
    (("control_model.", "controlnet_cond_embedding", "input_hint_block"), "a ControlNet", FULL),
    (("joint_blocks.",), "Stable Diffusion 3 in one file", FOLDER),
    (("double_blocks.",), "FLUX in one file", FOLDER),
    (("conditioner.embedders.0.model.",), "an SDXL refiner", "give the base model"),
    (("motion_modules.",), "a motion module", FULL),
    (("adapter.body.", "body.0.block1.", "body.0.in_conv."), "a T2I-Adapter", FULL),
    ((".rdb1.", ".RDB1."), "an upscaler of images", FULL),
    (("edm_mean", "edm_vpred"), "an SDXL variant with EDM noise levels", FULL),
)
# How all names of a part alone begin, and which part it is.
PARTS = (
    (("down_blocks.", "up_blocks.", "mid_block."), "one network in diffusers' layout", "give the whole folder"),
    (
        ("unet.", "vae.", "text_encoder."),
        "a model in diffusers' layout in one file",
        "give the folder, or the original",
    ),
    (("encoder.", "decoder.", VAE), "a VAE alone", FULL),
    (("text_model.", "transformer.resblocks.", "cond_stage_model.", "conditioner."), "a text encoder alone", FULL),
    (("input_blocks.", "middle_block.", "output_blocks."), "a bare UNet (missing text encoder and VAE)", FULL),
    (("model_ema.",), "the averaged copy of a UNet alone", FULL),
)
EMBEDDINGS = {"emb_params", "clip_l", "clip_g", "t5xxl", "string_to_param", "string_to_token", "*"}
WORD_WIDTHS = (768, 1024, 1280)  # of the text encoders' vocabularies, in one of which a new word is an embedding
CHANNELS = {9: "an inpainting model", 8: "an instruct-pix2pix model", 5: "a depth model", 7: "an upscaler"}


def kind_of(shapes: Shapes, source: str) -> str:
    """Which of sd1, sd2 and sdxl a file is, from the shapes of a file's tensors by name.

    Raises ModelError saying what `source` is instead, or what it lacks, and what to do.
    """
    _refuse_foreign(shapes, source)
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        _refuse_part(shapes, source)
    kind = next((kind for prefix, kind in TEXT.items() if _any(shapes, prefix)), None)
    missing = _missing_encoder(shapes, kind) + ([] if _any(shapes, VAE) else ["VAE"])
    if missing or kind is None:
        only = "a bare UNet" if len(missing) == 2 else "an incomplete model"
        raise ModelError(f"{source} is {only} (missing {' and '.join(missing)}): {FULL}")
    _check_unet(shapes, kind, source)
    return kind


def _missing_encoder(shapes: Shapes, kind: str | None) -> list[str]:
    """The text encoder that a file lacks, for a message."""
    first = _any(shapes, "conditioner.embedders.0.transformer.")
    if kind is None:
        return ["second text encoder" if first else "text encoder"]
    return ["first text encoder"] if kind == "sdxl" and not first else []


def _refuse_foreign(shapes: Shapes, source: str) -> None:
    for pieces, what, advice in FOREIGN:
        if any(piece in name for name in shapes for piece in pieces):
            raise ModelError(f"{source} is {what}, not a model that can be erased from: {advice}")
    if shapes and all(name in EMBEDDINGS or _is_word(name, shape) for name, shape in shapes.items()):
        raise ModelError(f"{source} is a textual-inversion embedding, not a model: {FULL}")


def _is_word(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a new word of a text encoder, under the word itself."""
    return name.startswith("<") or ("." not in name and len(shape) in (1, 2) and shape[-1] in WORD_WIDTHS)


def _refuse_part(shapes: Shapes, source: str) -> None:
    """Say what a file without an original UNet is."""
    for starts, what, advice in PARTS:
        if not _any(shapes, UNET) and any(name.startswith(starts) for name in shapes):
            raise ModelError(f"{source} is {what}: {advice}")
    first = ", ".join(list(shapes)[:3]) or "no tensors"
    raise ModelError(f"{source} has an unknown layout ({first}): {FULL}")


def _check_unet(shapes: Shapes, kind: str, source: str) -> None:
    """The UNet takes plain latents, and reads prompts of the width its text encoder writes."""
    channels = (*shapes[f"{UNET}input_blocks.0.0.weight"], 0, 0)[1]
    if channels != 4:
        what = CHANNELS.get(channels, "another sort of model")
        raise ModelError(f"{source} is {what} (its UNet takes {channels} channels, not 4): {FULL}")
    keys = [name for name in shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight")]
    widths = {shapes[name][-1] for name in keys if shapes[name]}
    known = {WIDTHS.get(width) for width in widths} - {None, kind}
    if known:
        found = TITLES[str(known.pop())]
        raise ModelError(f"{source} mixes the UNet of {found} with the text encoder of {TITLES[kind]}: {FULL}")


def _any(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def velocity_hint(shapes: Shapes, metadata: Mapping[str, str]) -> bool | None:
    """Whether the file itself says that its UNet predicts velocity; None when it does not say.

    Read are a tensor named `v_pred`, as the velocity versions of SDXL carry it, and the metadata of trainers.
    """
    if "v_pred" in shapes:
        return True
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if metadata.get(key):
            return metadata[key].lower().startswith("v")
    if "ss_v_parameterization" in metadata:
        return metadata["ss_v_parameterization"].lower() in ("true", "1")
    return None


def predicts_velocity(unet: Any, encoder_hidden_states: Tensor | None = None, seed: int = 0) -> bool:
    """Whether a trained UNet predicts velocity rather than noise, decided by what it does at the last timestep.

    There its input is nearly pure noise, so a network that predicts noise returns its input (correlation near 1);
    velocity is then nearly minus the image (Salimans and Ho, 2022), which hardly depends on the input. A prompt may be
    given as `encoder_hidden_states` (1, tokens, width), else zeros. An untrained network does neither: True.
    """
    config = unet.config
    weight = next(unet.parameters())
    side = min(config.sample_size, 32)  # a small image gives the same decision, and is quick on a CPU
    shape = (2, config.in_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if encoder_hidden_states is None:
        encoder_hidden_states = torch.zeros(1, 77, config.cross_attention_dim)
    condition = encoder_hidden_states.to(weight).expand(len(noise), -1, -1)
    with torch.no_grad():
        predictions = [unet(x[None].to(weight), 999, c[None]).sample for x, c in zip(noise, condition, strict=True)]
    pair = torch.stack([noise.flatten(), torch.cat(predictions).flatten().float().cpu()])
    return bool(torch.corrcoef(pair)[0, 1] < 0.7)
