"""ddpm: pixel-space denoising diffusion, class-conditional or not (Ho et al., 2020), on diffusers' UNet2DModel.

A class-conditional network has one embedding a class and one more, the null class, for classifier-free guidance (Ho
and Salimans, 2022). Unconditional networks (the layout of google/ddpm-cifar10-32) have no labels, so a label cannot be
replaced: there, relabelling asks for the noise that leads from the noised forget image to a retain image instead. That
is our extension of the paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from erasure.data import Batch
from erasure.errors import ModelError, NotApplicableError, OptionError
from erasure.models._base import DiffusionModel, Examples, drawn_timesteps, fill, read_object
from erasure.run import atomic_folder, write_json

SAMPLING = {"num_inference_steps": 50, "eta": 1.0, "guidance_scale": 1.0}


class DDPM(DiffusionModel):
    """A UNet2DModel with its noise scheduler."""

    family = "ddpm"
    network: Any

    def __init__(self, network: Any, noise_scheduler: Any, info: dict[str, Any], source: str = "") -> None:
        super().__init__(network, info, source)
        self.noise_scheduler = noise_scheduler
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
        network: Any = UNet2DModel.from_config(read_object(unet / "config.json"))
        fill(network, weights)
        model = cls(network.eval(), _scheduler(root), cls.info_of(root), folder)
        if model.conditional and model.class_names and len(model.class_names) != model.num_classes:
            raise ModelError(
                f"{folder}: erasure.json names {len(model.class_names)} classes, the network knows {model.num_classes}"
            )
        return model

    @classmethod
    def new(cls, config: dict[str, Any], info: dict[str, Any], seed: int, num_train_timesteps: int = 1000) -> Self:
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
        return type(self)(network.eval(), self.noise_scheduler, dict(self.info))

    def save(self, folder: Path) -> None:
        """Write a stock DDPMPipeline folder (unet/, scheduler/) with our erasure.json beside it, atomically."""
        from diffusers import DDPMPipeline

        with atomic_folder(folder) as temporary:
            pipeline: Any = DDPMPipeline(self.network_on_disk(), self.noise_scheduler)
            pipeline.save_pretrained(
                temporary, safe_serialization=True, max_shard_size=self.info.get("max_shard_size", "10GB")
            )
            write_json(temporary / "erasure.json", {**self.info, "family": self.family})

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of noise levels."""
        return int(self.noise_scheduler.config.num_train_timesteps)

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

    def add_noise(self, samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of `samples` (b, c, h, w) at integer `timesteps` (b,) in [0, T); DDPM eq. 4 (Ho et al., 2020)."""
        return self.noise_scheduler.add_noise(samples, noise, timesteps)

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """The network's prediction for `noisy` (b, c, h, w) at `timesteps` (b,) under `labels` (b,)."""
        return self.network(noisy, timesteps, class_labels=labels).sample

    def target(self, samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise, or the velocity (Salimans and Ho, 2022) when the scheduler says so."""
        kind = self.noise_scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self.noise_scheduler.get_velocity(samples, noise, timesteps)
        raise ModelError(f"prediction type {kind!r} is not supported: expected epsilon or v_prediction")

    def examples(self, batch: Batch, generator: torch.Generator, *, condition_drop: bool = False) -> Examples:
        """Noised images at antithetic timesteps, the noise as target; `condition_drop` nulls a share of the labels."""
        count = len(batch.images)
        noise = torch.randn(batch.images.shape, generator=generator)
        timesteps = drawn_timesteps(count, self.num_train_timesteps, generator)
        labels = self.with_dropped_condition(batch.labels, generator) if condition_drop else batch.labels
        noisy = self.add_noise(batch.images, noise, timesteps)
        target = self.target(batch.images, noise, timesteps)
        inputs = (noisy, timesteps, labels) if self.conditional else (noisy, timesteps)
        return Examples(
            tuple(value.to(self.device) for value in inputs),
            target.to(self.device),
            torch.ones(count, device=self.device),
        )

    def with_dropped_condition(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """`labels` with the model's share (0.1 unless its erasure.json says otherwise) replaced by the null class."""
        if self.null_label is None:
            return labels
        dropped = torch.rand(len(labels), generator=generator) < self.info.get("condition_drop", 0.1)
        return torch.where(dropped, self.null_label, labels)

    def answer(self, inputs: tuple[Tensor, ...], guidance_scale: float = 1.0) -> Tensor:
        """The prediction; with a guidance scale g other than 1, e(0) + g (e(c) - e(0))."""
        noisy, timesteps, *rest = inputs
        labels = rest[0] if rest else None
        if guidance_scale == 1.0:
            return self.predict(noisy, timesteps, labels)
        unguided = self.predict(noisy, timesteps, self._null_like(labels))
        return unguided + guidance_scale * (self.predict(noisy, timesteps, labels) - unguided)

    def _null_like(self, labels: Tensor | None) -> Tensor:
        if labels is None or self.null_label is None:
            raise NotApplicableError(f"{self.source or 'this model'} has no null class: its guidance scale must be 1")
        return torch.full_like(labels, self.null_label)

    def distance(self, answer: Tensor, target: Tensor) -> Tensor:
        """Mean squared error over pixels, (b,)."""
        return (answer.float() - target).square().flatten(1).mean(1)

    def relabelled(self, examples: Examples, anchor: Batch, teacher: DiffusionModel) -> Examples:  # type: ignore[override]
        """The same noised images; the target is what `teacher` predicts under the anchor's labels.

        Without labels the target is the noise that leads to the anchor's *images*, (x_t - a x_anchor) / s with a, s of
        DDPM eq. 4. Its distance from the true noise grows as a / s, so each sample is weighted by min(1, (s / a)^2),
        which bounds every sample's error by its distance in image space.
        """
        noisy, timesteps, *rest = examples.inputs
        if rest:
            with torch.no_grad():
                target = teacher.predict(noisy, timesteps, anchor.labels.to(noisy.device))
            return examples._replace(target=target.float())
        images = anchor.images.to(noisy.device)
        signal = self._alphas_cumprod.to(noisy.device)[timesteps].sqrt()[:, None, None, None]
        spread = (1 - signal.square()).sqrt()
        target = self.target(images, (noisy - signal * images) / spread, timesteps)
        return examples._replace(target=target, weight=(spread / signal).square().clamp(max=1.0).flatten())

    @torch.no_grad()
    def generate(self, labels: Tensor, seeds: list[int], **settings: Any) -> Tensor:
        """DDIM sampling (Song et al., 2021) in evaluation mode, images (b, c, h, w) in [-1, 1].

        `num_inference_steps`, `eta` (0 deterministic, 1 ancestral) and `guidance_scale` default to the model's own.
        Each image draws from its own CPU generator, so it does not depend on the batch it is made in.
        """
        from diffusers import DDIMScheduler

        chosen = {**SAMPLING, **self.info.get("sampling", {}), **settings}
        scheduler = DDIMScheduler.from_config(self.noise_scheduler.config)
        if not 1 <= chosen["num_inference_steps"] <= self.num_train_timesteps:
            raise OptionError(
                f"--num-inference-steps {chosen['num_inference_steps']} is outside 1 to {self.num_train_timesteps}"
            )
        scheduler.set_timesteps(chosen["num_inference_steps"])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def drawn() -> Tensor:
            return torch.stack([torch.randn(self.image_shape, generator=g) for g in generators]).to(self.device)

        was_training = self.network.training
        self.network.eval()
        sample = drawn()
        on_device = labels.to(self.device)
        for timestep in scheduler.timesteps:
            inputs = (sample, timestep.expand(len(sample)).to(self.device), on_device)
            prediction = self.answer(inputs if self.conditional else inputs[:2], chosen["guidance_scale"])
            noise = drawn() if chosen["eta"] > 0 else None
            sample = scheduler.step(prediction, timestep, sample, eta=chosen["eta"], variance_noise=noise).prev_sample
        self.network.train(was_training)
        return sample.clamp(-1, 1).cpu()


def _class_name(path: Path) -> str | None:
    return read_object(path).get("_class_name") if path.is_file() else None


def _scheduler(root: Path) -> Any:
    from diffusers import DDPMScheduler

    for path in (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"):
        if path.is_file():
            config = {key: value for key, value in read_object(path).items() if not key.startswith("_")}
            return DDPMScheduler.from_config(config)
    return DDPMScheduler()
