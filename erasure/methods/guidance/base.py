"""Negative guidance, the target that esd and lora_esd share (Gandikota et al., 2023, eq. 7 and 8)."""

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

    batch_size: Annotated[int, "samples a step, each drawn anew under a prompt (or class) to forget"] = 1
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for none"] = 0.0
    negative_guidance: Annotated[float, "eta: how far away from the concept, beyond the unconditional prediction"] = 1.0
    sampling_steps: Annotated[int, "denoising steps of a whole image; a sample takes a random number of them"] = 50
    sampling_guidance: Annotated[float, "guidance scale under which samples are drawn"] = 3.0

    def check(self, task: Task) -> None:
        """Also: every option of its own is in range, and the task has labels to be asked for."""
        super().check(task)
        if self.epochs:
            raise OptionError(f"--epochs {self.epochs:g}: this method draws its samples itself, so give --steps")
        if self.sampling_steps < 1 or not (
            0 <= self.negative_guidance < math.inf and math.isfinite(self.sampling_guidance)
        ):
            raise OptionError(
                "--sampling-steps must be at least 1, --negative-guidance at least 0, --sampling-guidance finite"
            )
        if task.samples:
            raise OptionError(
                "this method forgets what a class or a prompt asks for, not single samples: name classes with --forget"
            )

    def check_model(self, model: Model) -> None:
        """A diffusion model that can also be asked for nothing in particular."""
        self.check_guided(model)
        super().check_model(model)

    def check_guided(self, model: Model) -> None:
        """Raise NotApplicableError for a model without an unconditional prediction, OptionError for too many steps."""
        if not isinstance(model, DiffusionModel):
            raise NotApplicableError(f"a {model.family} has no guidance to turn around: this needs a diffusion model")
        if not isinstance(model, StableDiffusion) and model.null_label is None:
            raise NotApplicableError(
                f"{model.source or 'this model'} has no null class, so no guidance to turn around: this needs a "
                "class-conditional network that was trained with one"
            )
        if self.sampling_steps > model.num_train_timesteps:
            raise OptionError(f"--sampling-steps {self.sampling_steps} is more than {model.num_train_timesteps}")

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """The student samples without graph, the original answers without graph, the student once with it."""
        assert isinstance(model, DiffusionModel) and isinstance(frozen, DiffusionModel)
        size, generator = self.batch_size, draws.generator
        whole = (
            torch.randn((size, *model.sample_shape), generator=generator),
            draws.asked(task, size),
            torch.randint(0, self.sampling_steps, (size,), generator=generator),
        )
        noise, labels, stops = (values[draws.step.part :: draws.step.parts] for values in whole)
        noisy, timesteps = model.partly_sampled(
            noise, labels, stops, num_inference_steps=self.sampling_steps, guidance_scale=self.sampling_guidance
        )
        inputs = (noisy, timesteps, labels.to(model.device))
        target = self.target(frozen, *inputs)
        return {"loss": model.per_sample_loss(Examples(inputs, target, torch.ones_like(target[:, 0, 0, 0]))).mean()}

    @torch.no_grad()
    def target(self, frozen: DiffusionModel, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """e(0) - eta (e(c) - e(0)) of the original, (b, c, h, w), in one pass; it holds for velocities as for noise."""
        assert frozen.null_label is not None
        both = torch.cat([torch.full_like(labels, frozen.null_label), labels])
        answers = frozen.predict(torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), both).float()
        unguided, guided = answers.chunk(2)
        return unguided - self.negative_guidance * (guided - unguided)
