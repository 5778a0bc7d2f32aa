"""What text-to-image models trained by flow matching share (Lipman et al., 2023; Esser et al., 2024).

A sample goes to noise on a straight line, x_t = (1 - sigma) x + sigma eps; the network answers with the velocity
eps - x, and an image is drawn by following it back in Euler steps. A timestep is T sigma, a number in (0, T] that need
not be whole. Text is read by T5 beside CLIP, and image and text share every attention.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasure.core.errors import ModelError, NotApplicableError, OptionError
from erasure.core.run_dir import fingerprint
from erasure.models.diffusion import Answer, SamplingPlan
from erasure.models.prompt_encoding import token_ids
from erasure.models.stable_diffusion import StableDiffusion


class Flow(StableDiffusion):
    """A transformer that turns latents back into images under text; the last of `encoders` is a T5."""

    network_part = "transformer"
    one_file = False
    joint_attention = True
    patch: ClassVar[int] = 2  # latents that one token holds, in each direction

    @property
    @abstractmethod
    def window(self) -> int:
        """How many tokens of a prompt T5 reads."""

    @classmethod
    def _tokenizer_kind(cls, name: str) -> str:
        return "T5TokenizerFast" if name == cls.tokenizers[-1] else "CLIPTokenizer"

    @classmethod
    def _noise_scheduler(cls, config: Mapping[str, Any], folder: str) -> Any:
        """How sigmas are spaced and shifted, whatever sampler the folder names."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        named = str(config.get("_class_name"))
        if not named.startswith("FlowMatch"):
            raise ModelError(
                f"{folder}: its scheduler is a {named}: expected FlowMatchEulerDiscreteScheduler, as in every "
                f"{cls.pipeline_class} folder"
            )
        plain = {key: value for key, value in config.items() if not key.startswith("_")}
        return FlowMatchEulerDiscreteScheduler.from_config(plain, stochastic_sampling=False)

    @classmethod
    def _check_pairs(cls, folder: str, pairs: Mapping[str, tuple[int, int]]) -> None:
        """Raise ModelError for the first pair of unequal widths: what the transformer reads, what it is given."""
        for what, (read, given) in pairs.items():
            if read != given:
                raise ModelError(
                    f"{folder}: the transformer reads {what} {read} wide, the other parts of this "
                    f"{cls.pipeline_class} give "
                    f"{given}: parts of different models are mixed"
                )

    @property
    def parts_hash(self) -> str:
        """SHA-256 of all but the transformer that decides an image, how much of a prompt T5 reads included."""
        return fingerprint({"parts": super().parts_hash, "window": self.window})

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents at the model's image size."""
        return self.shape_of(None)

    def shape_of(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of images of `size` (height, width); None: the model's own."""
        height, width = size or self.image_shape[1:]
        step = self.vae_scale * self.patch
        if min(height, width) < 1 or height % step or width % step:
            raise OptionError(f"images of {width} x {height}: sides must be multiples of {step}")
        return self.parts["vae"].config.latent_channels, height // self.vae_scale, width // self.vae_scale

    def _words(self, prompts: Sequence[str]) -> Tensor:
        """T5's embeddings (n, window, d) of prompts; padding is read like words, as these models were trained."""
        ids = token_ids(self.parts[self.tokenizers[-1]], prompts, self.window).to(self.device)
        return self.parts[self.encoders[-1]](ids).last_hidden_state

    def training_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps (count,): sigmas logit-normal in antithetic pairs, then shifted as in sampling (Esser et al.)."""
        half = torch.randn((count + 1) // 2, generator=generator)
        sigmas = torch.cat([half, -half])[:count].sigmoid()
        scheduler = self.noise_scheduler
        mu = self._mu(self.sample_shape)
        if mu is not None:
            return scheduler.time_shift(mu, 1.0, sigmas) * self.num_train_timesteps
        shift = scheduler.config.shift
        return shift * sigmas / (1 + (shift - 1) * sigmas) * self.num_train_timesteps

    def add_noise(self, samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = (1 - sigma) x + sigma eps of `samples` (b, c, h, w) at `timesteps` (b,), T sigma."""
        sigmas = (timesteps / self.num_train_timesteps).to(samples)[:, None, None, None]
        return (1 - sigmas) * samples + sigmas * noise

    def target(self, samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity eps - x, which is the same all along the line."""
        return noise - samples

    def _mu(self, shape: tuple[int, int, int]) -> float | None:
        """How far sigmas are shifted for latents of `shape`, more for more tokens; None: by a fixed shift."""
        config = self.noise_scheduler.config
        if not config.use_dynamic_shifting:
            return None
        tokens = shape[1] * shape[2] // self.patch**2
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return config.base_shift + slope * (tokens - config.base_image_seq_len)

    def _spacing(self, num_inference_steps: int) -> list[float] | None:
        """Sigmas before they are shifted; None: as the scheduler spaces them."""
        return None

    def sigmas(self, num_inference_steps: int, shape: tuple[int, int, int]) -> Tensor:
        """Noise levels from 1 to 0 between which an image is drawn, (num_inference_steps + 1,)."""
        scheduler = copy.deepcopy(self.noise_scheduler)
        scheduler.set_timesteps(num_inference_steps, sigmas=self._spacing(num_inference_steps), mu=self._mu(shape))
        return scheduler.sigmas

    def sampling_plan(
        self, chosen: dict[str, Any], shape: tuple[int, int, int], answer: Answer, drawn: Callable[[], Tensor]
    ) -> SamplingPlan:
        """Euler steps along the flow; raises NotApplicableError for an `eta` or a `sampler` that flows do not have."""
        self._check_sampling(chosen)
        sigmas = self.sigmas(chosen["num_inference_steps"], shape)

        def step(index: int, sample: Tensor, labels: Tensor) -> Tensor:
            timesteps = (sigmas[index] * self.num_train_timesteps).expand(len(sample)).to(self.device)
            velocity = answer((sample, timesteps, labels), chosen["guidance_scale"])
            return sample + (sigmas[index + 1] - sigmas[index]) * velocity

        return SamplingPlan(sigmas[:-1] * self.num_train_timesteps, 1.0, step)

    def _check_sampling(self, chosen: Mapping[str, Any]) -> None:
        if not 1 <= chosen["num_inference_steps"] <= self.num_train_timesteps:
            raise OptionError(
                f"--num-inference-steps {chosen['num_inference_steps']} is outside 1 to {self.num_train_timesteps}"
            )
        if chosen.get("eta"):
            raise NotApplicableError(
                f"--eta {chosen['eta']}: DDIM adds noise, a flow is followed without ({self.family}): leave it out"
            )
        if chosen["sampler"] != "euler":
            raise NotApplicableError(
                f"--sampler {chosen['sampler']} is for models that predict noise; {self.family} predicts a flow and "
                "is drawn with euler"
            )
