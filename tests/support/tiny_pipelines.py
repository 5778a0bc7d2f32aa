"""Stable Diffusion in miniature: stock pipelines from the real classes, seeded, with every structure of the real ones.

Latents are (4, 8, 8) and images (3, 32, 32). Widths differ where the real ones differ in kind: the two text encoders of
SDXL are 8 and 24 wide, and its projection is not square, so that a wrong half or a missing transpose shows.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CROSS_ATTENTION_DIM = 32
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def vocabulary() -> dict[str, int]:
    """Every printable character, alone and at the end of a word; the two special tokens come last, as in CLIP."""
    characters = "!" + string.ascii_lowercase + string.digits + string.punctuation.replace("!", "")
    symbols = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    return {symbol: index for index, symbol in enumerate(symbols)}


def tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    """A CLIPTokenizer that spells words out."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=vocabulary(), merges=[], pad_token=pad_token, model_max_length=77)


def text_config(width: int, hidden_act: str, projection_dim: int) -> Any:
    """Two layers of CLIP's text transformer."""
    from transformers import CLIPTextConfig

    size = len(vocabulary())
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=hidden_act,
        projection_dim=projection_dim,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=1,
    )


def unet(**different: Any) -> Any:
    """A UNet2DConditionModel of two blocks, the first with attention."""
    from diffusers import UNet2DConditionModel

    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": CROSS_ATTENTION_DIM,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**settings, **different})


def vae(**different: Any) -> Any:
    """An AutoencoderKL that halves twice."""
    from diffusers import AutoencoderKL

    settings: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 16,
        "sample_size": 32,
    }
    return AutoencoderKL(**{**settings, **different})


def _seeded(build: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = build()
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sd1(seed: int = 0) -> Any:
    """The shape of Stable Diffusion 1: OpenAI's text encoder, convolutions around attention, epsilon."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    return _seeded(
        lambda: StableDiffusionPipeline(
            vae=vae(),
            text_encoder=CLIPTextModel(text_config(CROSS_ATTENTION_DIM, "quick_gelu", CROSS_ATTENTION_DIM)),
            tokenizer=tokenizer(),
            unet=unet(),
            scheduler=PNDMScheduler(**NOISE, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        seed,
    )


def sd2_v(seed: int = 0) -> Any:
    """The shape of Stable Diffusion 2 at 768: OpenCLIP's text encoder, linear projections, velocity."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    return _seeded(
        lambda: StableDiffusionPipeline(
            vae=vae(),
            text_encoder=CLIPTextModel(text_config(CROSS_ATTENTION_DIM, "gelu", 16)),
            tokenizer=tokenizer("!"),
            unet=unet(use_linear_projection=True, attention_head_dim=(2, 4)),
            scheduler=DDIMScheduler(
                **NOISE, steps_offset=1, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        seed,
    )


def sdxl(seed: int = 0) -> Any:
    """The shape of SDXL: two text encoders, sizes and a pooled prompt as further conditions, two attention layers."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return _seeded(
        lambda: StableDiffusionXLPipeline(
            vae=vae(force_upcast=True, scaling_factor=0.13025),
            text_encoder=CLIPTextModel(text_config(8, "quick_gelu", 8)),
            text_encoder_2=CLIPTextModelWithProjection(text_config(24, "gelu", 32)),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer("!"),
            unet=unet(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                attention_head_dim=(2, 4),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
            ),
            scheduler=EulerDiscreteScheduler(**NOISE, steps_offset=1, timestep_spacing="leading"),
            add_watermarker=False,
        ),
        seed,
    )


BY_KIND = {"sd1": sd1, "sd2": sd2_v, "sdxl": sdxl}


@dataclass(frozen=True)
class Written:
    """A pipeline on disk: its stock folder, its single file, and what both must give back."""

    kind: str
    pipeline: Any
    folder: Path
    file: Path
    states: dict[str, dict[str, torch.Tensor]]
    configs: dict[str, dict[str, Any]]

    @property
    def embedded(self) -> dict[str, str]:
        """The metadata that tells a reader its sizes, which no published model has."""
        from erasure.formats.single_file import EMBEDDED

        return {EMBEDDED: json.dumps(self.configs)}


def written(kind: str, root: Path) -> Written:
    """The tiny pipeline of a kind (sd1, sd2, sdxl) as `root`/folder and `root`/one.safetensors."""
    from erasure.formats import single_file

    pipeline, folder, file = BY_KIND[kind](), root / "folder", root / "one.safetensors"
    pipeline.save_pretrained(folder)
    states = {
        name: part.state_dict() for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)
    }
    configs = single_file.folder_configs(folder)
    single_file.write(file, states, configs, {"note": "ours"})
    return Written(kind, pipeline, folder, file, states, configs)


def assert_equal(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None
) -> None:
    """Every tensor of `wanted`, bit for bit, in its own format or in `dtype`."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        expected = tensor.to(dtype) if dtype else tensor
        assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name
