"""Negative guidance: the target that esd, lora_esd and advunlearn share (Gandikota et al., 2023, eq. 7 and 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data.task import Task
from erasure.methods.base import GradientMethod, StepBatches
from erasure.models import DiffusionModel, Examples, Model
from erasure.models.stable_diffusion import StableDiffusion


@dataclass(frozen=True, kw_only=True)
class NegativeGuidance(GradientMethod):
    """L = |e(z_t, c) - (e_0(z_t, 0) - eta (e_0(z_t, c) - e_0(z_t, 0)))|^2, z_t sampled by the student as far as t."""

    needs_original: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()

    batch_size: Annotated[int, "samples per step, each generated under a prompt (or class) to forget"] = 1
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for none"] = 0.0
    negative_guidance: Annotated[
        float, "eta: distance of the target from the concept, beyond the unconditional prediction"
    ] = 1.0
    sampling_steps: Annotated[int, "denoising steps of a whole image; a sample takes a random number of them"] = 50
    sampling_guidance: Annotated[float, "guidance scale under which samples are generated"] = 3.0

    def check(self, task: Task) -> None:
        """Also raise OptionError for an option outside its range, for epochs, and for single samples."""
        super().check(task)
        if self.epochs:
            raise OptionError(f"--epochs {self.epochs:g}: this method generates its samples itself: give --steps")
        if self.sampling_steps < 1 or not (
            0 <= self.negative_guidance < math.inf and math.isfinite(self.sampling_guidance)
        ):
            raise OptionError(
                "--sampling-steps must be at least 1, --negative-guidance at least 0, --sampling-guidance finite"
            )
        if task.samples:
            raise OptionError(
                "this method erases what a class or a prompt asks for, not single samples: name classes with --forget"
            )

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a model without an unconditional prediction, or without the tensors to train."""
        self.check_guided(model)
        super().check_model(model)

    def check_guided(self, model: Model) -> None:
        """Raise NotApplicableError for a model without an unconditional prediction, OptionError for too many steps."""
        if not isinstance(model, DiffusionModel):
            raise NotApplicableError(f"a {model.family} has no guidance to invert: use a diffusion model")
        if not isinstance(model, StableDiffusion) and model.null_label is None:
            raise NotApplicableError(
                f"{model.source or 'this model'} has no null class, so no guidance to invert: use a class-conditional "
                "network that was trained with one"
            )
        if self.sampling_steps > model.num_train_timesteps:
            raise OptionError(f"--sampling-steps {self.sampling_steps} is more than {model.num_train_timesteps}")

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the distance to the target, on samples that the model in training generates without graph."""
        assert isinstance(model, DiffusionModel) and isinstance(original, DiffusionModel)
        size, generator = self.batch_size, batches.generator
        noise = batches.own(torch.randn((size, *model.sample_shape), generator=generator))
        labels = batches.own(batches.forget_labels(task, size))
        stops = batches.own(torch.randint(0, self.sampling_steps, (size,), generator=generator))
        noisy, timesteps = model.partly_sampled(
            noise, labels, stops, num_inference_steps=self.sampling_steps, guidance_scale=self.sampling_guidance
        )
        inputs = (noisy, timesteps, labels.to(model.device))
        target = self.target(original, *inputs)
        return {"loss": model.per_sample_loss(Examples(inputs, target, torch.ones_like(target[:, 0, 0, 0]))).mean()}

    @torch.no_grad()
    def target(self, original: DiffusionModel, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """The target e(0) - eta (e(c) - e(0)) of the original, (b, c, h, w), for predictions of noise or velocity.

        Args:
            original: The model that predicts.
            noisy: Noisy samples or latents, (b, c, h, w).
            timesteps: Their timesteps, (b,).
            labels: Labels of the concept c, (b,).
        """
        assert original.null_label is not None
        both = torch.cat([torch.full_like(labels, original.null_label), labels])
        predictions = original.predict(torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), both).float()
        unconditional, conditional = predictions.chunk(2)
        return unconditional - self.negative_guidance * (conditional - unconditional)
