"""ddpm: pixel-space denoising diffusion, class-conditional or not (Ho et al., 2020), on diffusers' UNet2DModel.

A class-conditional network has one embedding a class and one more, the null class, for classifier-free guidance (Ho
and Salimans, 2022). Unconditional networks (the layout of google/ddpm-cifar10-32) have no labels, so a label cannot be
replaced: there, relabelling asks for the noise that leads from the noised forget image to a retain image instead. That
is our extension of the paper.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from erasure.core.errors import ModelError
from erasure.core.files import atomic_folder, read_json
from erasure.data import Batch
from erasure.models.base import Examples, Model, fill
from erasure.models.diffusion import DiffusionModel
from erasure.models.info import ModelInfo, read_info, write_info

SAMPLING = {"num_inference_steps": 50, "eta": 1.0, "guidance_scale": 1.0}


class DDPM(DiffusionModel):
    """A UNet2DModel with its noise scheduler."""

    family = "ddpm"
    sampling = SAMPLING

    def __init__(self, network: Any, noise_scheduler: Any, info: ModelInfo, source: str = "") -> None:
        super().__init__(network, noise_scheduler, info, source)
        info.setdefault("channels", network.config.in_channels)
        info.setdefault("image_size", network.config.sample_size)
        self._alphas_cumprod = noise_scheduler.alphas_cumprod.clone()

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """A pipeline folder (unet/ inside or flat) or a bare UNet2DModel folder."""
        return any(
            _class_name(path) == "UNet2DModel" for path in (folder / "unet" / "config.json", folder / "config.json")
        )

    @classmethod
    def load(cls, folder: str) -> Self:
        """Load from a diffusers folder; weights must be safetensors, complete and finite."""
        from diffusers import UNet2DModel

        root = Path(folder)
        unet = root / "unet" if (root / "unet").is_dir() else root
        weights = unet / "diffusion_pytorch_model.safetensors"
        if not weights.is_file() and not weights.with_name(weights.name + ".index.json").is_file():
            pickled = sorted(unet.glob("*.bin"))
            hint = f"{pickled[0].name} is a pickle: convert it first" if pickled else "it is missing"
            raise ModelError(f"{folder} has no diffusion_pytorch_model.safetensors: {hint}")
        network: Any = UNet2DModel.from_config(read_json(unet / "config.json", ModelError))
        fill(network, weights)
        model = cls(network.eval(), _scheduler(root), read_info(root), folder)
        if model.conditional and model.class_names and len(model.class_names) != model.num_classes:
            raise ModelError(
                f"{folder}: erasure.json names {len(model.class_names)} classes, the network knows {model.num_classes}"
            )
        return model

    @classmethod
    def new(cls, config: dict[str, Any], info: ModelInfo, seed: int, num_train_timesteps: int = 1000) -> Self:
        """A network of `config` (keywords of UNet2DModel) with random weights and linear betas."""
        from diffusers import DDPMScheduler, UNet2DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: Any = UNet2DModel(**config)
        return cls(network.eval(), DDPMScheduler(num_train_timesteps=num_train_timesteps), info)

    def fresh(self, seed: int) -> Self:
        """The same architecture with new random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = type(self.network).from_config(self.network.config)
        return type(self)(network.eval(), self.noise_scheduler, copy.copy(self.info))

    def save(self, folder: Path) -> None:
        """Write a stock DDPMPipeline folder (unet/, scheduler/) with our erasure.json beside it, atomically."""
        with atomic_folder(folder) as temporary:
            self.pipeline().save_pretrained(
                temporary, safe_serialization=True, max_shard_size=self.info.get("max_shard_size", "10GB")
            )
            write_info(temporary, self.info, self.family)

    def pipeline(self) -> Any:
        """The stock DDPMPipeline of this model; it draws unconditionally."""
        from diffusers import DDPMPipeline

        return DDPMPipeline(self.network_on_disk(), self.noise_scheduler)

    @property
    def conditional(self) -> bool:
        """Whether the network takes class labels."""
        return self.network.config.num_class_embeds is not None

    @property
    def num_classes(self) -> int:
        """How many classes it can be asked for, the null class left out; 0 when it is unconditional."""
        return (self.network.config.num_class_embeds or 0) - (self.null_label is not None)

    @property
    def null_label(self) -> int | None:
        """The label that stands for "no class"."""
        return self.info.get("null_label")

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """It denoises pixels."""
        return self.image_shape

    def decode(self, samples: Tensor) -> Tensor:
        """Its samples are images."""
        return samples

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """The network's prediction for `noisy` (b, c, h, w) at `timesteps` (b,) under `labels` (b,)."""
        return self.network(noisy, timesteps, class_labels=labels).sample

    def relabeled(self, examples: Examples, anchor: Batch, teacher: Model) -> Examples:
        """The same noised images; the target is what `teacher` predicts under the anchor's labels.

        Without labels the target is the noise that leads to the anchor's *images*, (x_t - a x_anchor) / s with a, s of
        DDPM eq. 4. Its distance from the true noise grows as a / s, so each sample is weighted by min(1, (s / a)^2),
        which bounds every sample's error by its distance in image space.
        """
        if self.conditional:
            return super().relabeled(examples, anchor, teacher)
        noisy, timesteps = examples.inputs
        images = anchor.images.to(noisy.device)
        signal = self._alphas_cumprod.to(noisy.device)[timesteps].sqrt()[:, None, None, None]
        spread = (1 - signal.square()).sqrt()
        target = self.target(images, (noisy - signal * images) / spread, timesteps)
        return examples._replace(target=target, weight=(spread / signal).square().clamp(max=1.0).flatten())


def _class_name(path: Path) -> str | None:
    return read_json(path, ModelError).get("_class_name") if path.is_file() else None


def _scheduler(root: Path) -> Any:
    from diffusers import DDPMScheduler

    for path in (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"):
        if path.is_file():
            config = {key: value for key, value in read_json(path, ModelError).items() if not key.startswith("_")}
            return DDPMScheduler.from_config(config)
    return DDPMScheduler()
