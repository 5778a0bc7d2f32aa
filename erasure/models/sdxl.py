"""sdxl: Stable Diffusion XL (Podell et al., 2024): two text encoders, and size conditions beside the prompt.

The prompt is seen through the penultimate layers of both encoders; the second one's pooled answer and six numbers
(original size, crop, target size) join the timestep. The empty prompt is all zeros where the pipeline says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasure.models.prompt_encoding import token_ids
from erasure.models.stable_diffusion import StableDiffusion


class SDXL(StableDiffusion):
    """A UNet under two text encoders."""

    family = "sdxl"
    sampling: ClassVar[dict[str, Any]] = {"num_inference_steps": 50, "eta": 0.0, "guidance_scale": 5.0}
    pipeline_class = "StableDiffusionXLPipeline"
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    def _pipeline_options(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self._zeros, "add_watermarker": False}

    @property
    def _zeros(self) -> bool:
        return bool(self.info.get("pipeline", {}).get("force_zeros_for_empty_prompt", True))

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings (n, tokens, d1 + d2) and pooled ones (n, d2)."""
        found = []
        pooled = torch.empty(0)
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids = token_ids(self.parts[tokenizer], prompts).to(self.device)
            told = self.parts[encoder](ids, output_hidden_states=True)
            found.append(told.hidden_states[-2])
            pooled = told.text_embeds if encoder == "text_encoder_2" else pooled
        embeddings = torch.cat(found, dim=-1)
        if self._zeros:
            kept = torch.tensor([bool(prompt) for prompt in prompts], device=embeddings.device)
            embeddings, pooled = embeddings * kept[:, None, None], pooled * kept[:, None]
        return embeddings, pooled

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """The prediction for `noisy` latents (b, c, h, w) at `timesteps` (b,) under the prompts numbered `labels`."""
        height, width = (side * self.vae_scale for side in noisy.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=noisy.dtype, device=noisy.device)
        pooled = self.bound.pooled
        assert pooled is not None
        added = {"text_embeds": pooled[labels], "time_ids": sizes.expand(len(noisy), -1)}
        embeddings = self.bound.embeddings[labels]
        return self.network(noisy, timesteps, encoder_hidden_states=embeddings, added_cond_kwargs=added).sample
