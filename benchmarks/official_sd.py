"""The official SalUn algorithm for Stable Diffusion, written straightforwardly: the yardstick of what is timed.

Each step encodes the images (those to forget twice, once for the student and once for the pseudo-target) and all
prompts, constant ones too; then one pass with the retain batch, one with the forget batch, one of the same moving
network for the pseudo-target with its graph built and then cut; an int64 mask multiplied into every gradient; Adam over
all weights. Nothing of the package's machinery is used. All chance is given, so that other code can be fed the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Images:
    """Images (b, 3, h, w) in [-1, 1] with their prompts, and the chance of their encoding and of their noising."""

    images: Tensor
    prompts: Sequence[str]
    encoding_noise: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class Latents:
    """Latents (b, c, h, w) of unit variance, embeddings (b, tokens, d), and the chance of their noising."""

    latents: Tensor
    embeddings: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class Encoders:
    """What turns images and prompts into latents and embeddings."""

    vae: Any
    text_encoder: Any
    tokenizer: Any

    @torch.no_grad()
    def __call__(self, batch: Images) -> Latents:
        """Encode a batch."""
        posterior = self.vae.encode(batch.images).latent_dist
        latents = (posterior.mean + posterior.std * batch.encoding_noise) * self.vae.config.scaling_factor
        ids = self.tokenizer(
            list(batch.prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        embeddings = self.text_encoder(ids.to(batch.images.device)).last_hidden_state
        return Latents(latents, embeddings, batch.noise, batch.timesteps)


class OfficialSalUn:
    """The loop's state: the UNet, the noise schedule, the int64 mask, Adam; `encoders` for steps on images."""

    def __init__(
        self,
        unet: Any,
        alphas_cumprod: Tensor,
        mask: Mapping[str, Tensor],
        encoders: Encoders | None = None,
        learning_rate: float = 1e-5,
        alpha: float = 0.5,
    ) -> None:
        self.unet, self.encoders, self.alpha = unet, encoders, alpha
        device = next(unet.parameters()).device
        self.alphas_cumprod = alphas_cumprod.to(device)
        self.mask = {name: tensor.to(device, torch.int64) for name, tensor in mask.items()}
        self.optimizer = torch.optim.Adam(unet.parameters(), lr=learning_rate)

    def step(self, forget: Images, pseudo: Images, retain: Images) -> float:
        """One update from images and prompts; returns the loss."""
        if self.encoders is None:
            raise ValueError("a step on images needs encoders: give them, or call update with latents")
        return self.update(self.encoders(forget), self.encoders(pseudo), self.encoders(retain))

    def update(self, forget: Latents, pseudo: Latents, retain: Latents) -> float:
        """One update from latents and embeddings; returns the loss."""
        self.optimizer.zero_grad()
        retain_loss = nn.functional.mse_loss(self._predicted(retain), retain.noise)
        output = self._predicted(forget)
        target = self._predicted(pseudo).detach()
        loss = nn.functional.mse_loss(output, target) + self.alpha * retain_loss
        loss.backward()
        for name, parameter in self.unet.named_parameters():
            if parameter.grad is not None:
                parameter.grad *= self.mask[name]
        self.optimizer.step()
        return float(loss.detach())

    def _predicted(self, batch: Latents) -> Tensor:
        kept = self.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * batch.latents + (1 - kept).sqrt() * batch.noise
        return self.unet(noisy, batch.timesteps, encoder_hidden_states=batch.embeddings).sample
