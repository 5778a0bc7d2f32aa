"""flux: FLUX.1 dev and schnell (Black Forest Labs, 2024), flow matching under CLIP and T5.

T5 is what the attention reads, CLIP's pooled answer joins the timestep. Latents go in as tokens of 2 x 2, each with its
position. The network of dev was distilled from guided answers (Meng et al., 2023): it is told the guidance scale and
answers for it in one pass. What is trained is its answer at scale 1, the only one whose loss is that of flow matching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from erasure.models.flow_matching import Flow
from erasure.models.info import ModelInfo
from erasure.models.prompt_encoding import token_ids


class Flux(Flow):
    """A FluxTransformer2DModel under a CLIP and a T5."""

    family = "flux"
    sampling: ClassVar[dict[str, Any]] = {"sampler": "euler", "num_inference_steps": 28, "guidance_scale": 3.5}
    pipeline_class = "FluxPipeline"
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    def __init__(
        self, network: Any, noise_scheduler: Any, parts: dict[str, Any], info: ModelInfo, source: str = ""
    ) -> None:
        super().__init__(network, noise_scheduler, parts, info, source)
        if not self.told_guidance:  # schnell, distilled to few steps without guidance
            info.setdefault("sampling", {"num_inference_steps": 4, "guidance_scale": 1.0})

    @classmethod
    def _check_widths(cls, network: Any, modules: Mapping[str, Any], folder: str) -> None:
        """Raise ModelError when the transformer was made for another autoencoder or other text encoders."""
        config = network.config
        cls._check_pairs(
            folder,
            {
                "latents": (config.in_channels, modules["vae"].config.latent_channels * cls.patch**2),
                "text": (config.joint_attention_dim, modules["text_encoder_2"].config.d_model),
                "pooled text": (config.pooled_projection_dim, modules["text_encoder"].config.hidden_size),
            },
        )

    def _pipeline_options(self) -> dict[str, Any]:
        return {}

    @property
    def told_guidance(self) -> bool:
        """Whether the network is told the guidance scale, as dev's is and schnell's is not."""
        return bool(self.network.config.guidance_embeds)

    @property
    def window(self) -> int:
        """How many tokens of a prompt T5 reads: 512, schnell 256, unless its erasure.json says otherwise."""
        return int(self.info.get("max_sequence_length", 512 if self.told_guidance else 256))

    @property
    def _latent_side(self) -> int:
        return 128  # the stock pipeline's; the configuration does not say

    def _spacing(self, num_inference_steps: int) -> list[float]:
        return torch.linspace(1, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64).tolist()

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """T5's embeddings (n, window, d) and CLIP's pooled ones (n, p)."""
        ids = token_ids(self.parts["tokenizer"], prompts).to(self.device)
        return self._words(prompts), self.parts["text_encoder"](ids).pooler_output

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """The velocity at `noisy` latents (b, c, h, w) and `timesteps` (b,) under the prompts numbered `labels`."""
        return self._predicted(noisy, timesteps, labels, 1.0)

    def prediction(self, inputs: tuple[Tensor, ...], guidance_scale: float = 1.0) -> Tensor:
        """The velocity; a guidance scale of 1 and more is told to a network that takes it.

        For others, and below 1, where no network was taught, it is e(0) + g (e(c) - e(0)).
        """
        if guidance_scale < 1 or not self.told_guidance:
            return super().prediction(inputs, guidance_scale)
        noisy, timesteps, labels = inputs
        return self._predicted(noisy, timesteps, labels, guidance_scale)

    def _predicted(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None, guidance: float) -> Tensor:
        rows, columns = (side // self.patch for side in noisy.shape[-2:])
        places = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))  # (tokens, 3)
        embeddings, pooled = self.bound.embeddings[labels], self.bound.pooled
        assert pooled is not None
        velocity = self.network(
            hidden_states=pixel_unshuffle(noisy, self.patch).flatten(2).transpose(1, 2),  # (b, tokens, 4 c)
            timestep=timesteps / self.num_train_timesteps,
            guidance=timesteps.new_full((len(noisy),), guidance, dtype=noisy.dtype) if self.told_guidance else None,
            encoder_hidden_states=embeddings,
            pooled_projections=pooled[labels],
            txt_ids=embeddings.new_zeros(embeddings.shape[1], 3),
            img_ids=places.to(noisy),
        ).sample
        return pixel_shuffle(velocity.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)
