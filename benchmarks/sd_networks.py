"""Stable Diffusion 1.x at any width, of random weights, made in seconds; and what an erasure of it is about.

The structure is the shipped configuration's; widths shrink together, so that the shares of UNet, autoencoder and text
encoder in the work stay those of the real ones. Width 320 is the real one.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import erasure
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.formats.clip_tokenizer import clip_tokenizer
from erasure.models.prompt_encoding import PromptEmbeddings
from erasure.models.stable_diffusion import StableDiffusion, noise_scheduler
from erasure.saliency.mask import Mask
from erasure.training.latent_cache import Latents

CONFIGS = Path(erasure.__file__).parent / "formats" / "configs" / "sd1"
BLOCK = (1 << 20) + 7  # random values that all tensors are made of; no row length divides it, so rows differ
TOKENS = 77
PROMPTS = ("a three", "a seven", "a one")
TASK = Task(PROMPTS, (0,), anchors=(1,), title="three")


def unet(width: int, size: int) -> Any:
    """SD 1's UNet for latents of `size`, `width` channels at its top; its float32 weights fit into float16 exactly."""
    from diffusers import UNet2DConditionModel

    changes = {
        "sample_size": size,
        "block_out_channels": [width, 2 * width, 4 * width, 4 * width],
        "cross_attention_dim": text_width(width),
        "norm_num_groups": math.gcd(32, width),
    }
    with torch.device("meta"):
        network: Any = UNet2DConditionModel.from_config({**_config("unet"), **changes})
    assert not list(network.buffers())
    return _filled(network.to_empty(device="cpu")).eval()


def text_width(width: int) -> int:
    """The width of the text encoder that goes with a UNet: a multiple of its twelve heads, 768 for 320."""
    return 12 * round(width / 5)


def whole(width: int, size: int) -> StableDiffusion:
    """Every part, for latents of `size`, with PROMPTS bound."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    base = 8 * round(width / 20)
    levels = {"block_out_channels": [base, 2 * base, 4 * base, 4 * base], "norm_num_groups": math.gcd(32, base)}
    text = {
        "hidden_size": text_width(width),
        "projection_dim": text_width(width),
        "intermediate_size": 4 * text_width(width),
    }
    parts = {
        "vae": AutoencoderKL.from_config({**_config("vae"), **levels, "sample_size": 8 * size}).eval(),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**{**_config("text_encoder"), **text})).eval(),
        "tokenizer": clip_tokenizer(),
    }
    return _model(width, size, parts).set_prompts(PROMPTS)


def denoiser(width: int, size: int) -> StableDiffusion:
    """The UNet alone: random conditions lie ready, the autoencoder is a stand-in that nobody calls."""
    from diffusers import AutoencoderKL

    stand_in = AutoencoderKL.from_config({**_config("vae"), "block_out_channels": [8] * 4, "norm_num_groups": 8})
    model = _model(width, size, {"vae": stand_in})
    embeddings = torch.randn((len(PROMPTS) + 1, TOKENS, text_width(width)), generator=_generator())
    model.prompt_embeddings = PromptEmbeddings((*PROMPTS, ""), embeddings)
    return model


def images(size: int, count: int) -> Dataset:
    """`count` noise images of `size` pixels for each prompt: no time depends on what an image shows."""
    pixels = np.random.default_rng(0).integers(0, 256, (count * len(PROMPTS), size, size, 3), np.uint8)
    return Dataset("noise", "train", pixels, np.arange(len(pixels)) % len(PROMPTS), PROMPTS)


def latents(size: int, count: int) -> Latents:
    """`count` random moments of `size` for each prompt."""
    moments = torch.randn((count * len(PROMPTS), 8, size, size), generator=_generator()).abs()
    empty = np.empty((len(moments), 0, 0, 0), np.uint8)
    return Latents("noise", "train", empty, np.arange(len(moments)) % len(PROMPTS), PROMPTS, moments=moments)


def half_mask(network: nn.Module, dtype: torch.dtype = torch.bool) -> dict[str, Tensor]:
    """About half of the weights of every tensor, at random, in memory of their own."""
    block = torch.rand(BLOCK, generator=_generator()) < 0.5
    return {name: _tiled(block, parameter.shape, dtype) for name, parameter in network.named_parameters()}


def random_mask(network: nn.Module) -> Mask:
    """The same as a Mask read from its file, a bit a weight."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        Mask(half_mask(network)).save(path)
        return Mask.load(path)


def _model(width: int, size: int, parts: dict[str, Any]) -> StableDiffusion:
    config = json.loads((CONFIGS / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    info = {"image_size": 8 * size, "dtypes": {}}
    return StableDiffusion(unet(width, size), noise_scheduler(config), {**parts, "scheduler_config": config}, info)


def _config(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS / part / "config.json").read_text(encoding="utf-8"))
    return found


@torch.no_grad()
def _filled(network: nn.Module) -> nn.Module:
    """Weights of deviation 1 / sqrt(inputs), rounded to float16 values; norms scale by one and nothing is shifted."""
    block = torch.randn(BLOCK, generator=_generator())
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(float(name.endswith("weight")))
        else:
            scaled = (block / math.sqrt(parameter[0].numel())).half().float()
            parameter.copy_(_tiled(scaled, parameter.shape, torch.float32))
    return network


def _tiled(block: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """As many values as `shape` takes, the block again and again."""
    found = torch.empty(shape, dtype=dtype)
    for part in found.view(-1).split(BLOCK):
        part.copy_(block[: len(part)])
    return found


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
