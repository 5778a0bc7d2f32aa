"""sd3: Stable Diffusion 3 and 3.5 (Esser et al., 2024), flow matching under three text encoders.

A prompt is seen through the penultimate layers of two CLIPs, side by side and widened with zeros, then through T5 along
the sequence; both pooled CLIPs join the timestep. T5 may be missing: its tokens are then zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasure.core.errors import ModelError, OptionError
from erasure.core.files import read_json
from erasure.models.flow_matching import Flow
from erasure.models.info import ModelInfo
from erasure.models.prompt_encoding import token_ids


class SD3(Flow):
    """An SD3Transformer2DModel under two CLIPs and a T5."""

    family = "sd3"
    sampling: ClassVar[dict[str, Any]] = {"sampler": "euler", "num_inference_steps": 28, "guidance_scale": 7.0}
    pipeline_class = "StableDiffusion3Pipeline"
    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2", "tokenizer_3")

    def __init__(
        self, network: Any, noise_scheduler: Any, parts: dict[str, Any], info: ModelInfo, source: str = ""
    ) -> None:
        super().__init__(network, noise_scheduler, parts, info, source)
        if "text_encoder_3" not in parts:
            self.encoders, self.tokenizers = self.encoders[:2], self.tokenizers[:2]

    @classmethod
    def _texts(cls, root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        named = read_json(root / "model_index.json", ModelError).get("text_encoder_3") or [None]
        count = 2 if named[0] is None else 3
        return cls.encoders[:count], cls.tokenizers[:count]

    @classmethod
    def _check_widths(cls, network: Any, modules: Mapping[str, Any], folder: str) -> None:
        """Raise ModelError when the transformer was made for another autoencoder or other text encoders."""
        config, clips = network.config, [modules[name].config for name in cls.encoders[:2]]
        width = sum(clip.hidden_size for clip in clips)
        if "text_encoder_3" in modules:
            width = max(width, modules["text_encoder_3"].config.d_model)
        else:
            width = max(width, config.joint_attention_dim)
        cls._check_pairs(
            folder,
            {
                "latents": (config.in_channels, modules["vae"].config.latent_channels),
                "text": (config.joint_attention_dim, width),
                "pooled text": (config.pooled_projection_dim, sum(clip.projection_dim for clip in clips)),
            },
        )

    def _pipeline_options(self) -> dict[str, Any]:
        return {} if "text_encoder_3" in self.parts else {"text_encoder_3": None, "tokenizer_3": None}

    @property
    def window(self) -> int:
        """How many tokens of a prompt T5 reads: the stock pipeline's 256, unless its erasure.json says otherwise."""
        return int(self.info.get("max_sequence_length", 256))

    def shape_of(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of images of `size` (height, width); None: the model's own."""
        shape = super().shape_of(size)
        largest = self.network.config.pos_embed_max_size
        if largest and max(shape[1:]) > largest * self.patch:
            side = largest * self.patch * self.vae_scale
            raise OptionError(f"images larger than {side} x {side}: this model has no positions beyond")
        return shape

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings (n, CLIP's tokens + T5's, d) and pooled ones (n, p1 + p2)."""
        found, pooled = [], []
        for tokenizer, encoder in zip(self.tokenizers[:2], self.encoders[:2], strict=True):
            ids = token_ids(self.parts[tokenizer], prompts).to(self.device)
            told = self.parts[encoder](ids, output_hidden_states=True)
            found.append(told.hidden_states[-2])
            pooled.append(told.text_embeds)
        width = self.network.config.joint_attention_dim
        clip = torch.cat(found, dim=-1)
        clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
        has_t5 = "text_encoder_3" in self.parts
        words = self._words(prompts) if has_t5 else clip.new_zeros(len(prompts), self.window, width)
        return torch.cat([clip, words], dim=1), torch.cat(pooled, dim=-1)

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """The velocity at `noisy` latents (b, c, h, w) and `timesteps` (b,) under the prompts numbered `labels`."""
        pooled = self.bound.pooled
        assert pooled is not None
        return self.network(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=self.bound.embeddings[labels],
            pooled_projections=pooled[labels],
        ).sample
