"""advunlearn: the text encoder unlearns a concept against adversarial prompts (Zhang et al., 2024).

https://arxiv.org/abs/2405.15234. Only the text encoder moves, so it can be put into other models that read prompts with
the same one. With c* the prompt c behind k learned token embeddings delta, and e_0 the original,

    attack   delta <- delta - alpha sign(d/d delta |e(z_t, c*) - e_0(z_t, c)|^2), from random tokens, anew in each step
    loss     |e(z_t, c*) - (e_0(z_t, 0) - eta (e_0(z_t, c) - e_0(z_t, 0)))|^2 + gamma |e(z_t, c_r) - e_0(z_t, c_r)|^2

The first --warmup steps see c itself. z_t is what the original draws of c, or of c_r, under guidance 3, stopped at a
random one of 50 steps: nothing that draws it moves, but for the text. The retain prompts c_r are the task's. --gamma is
the 0.5 of objects and styles, `--preset nudity` has 0.3; --attack-steps 1 is the fast variant.

We depart from the official code: its attack steps are Adam's, and each draws a z_t of its own; ours go along the sign,
as the paper's, and see the z_t of the loss, which saves 30 samplings a step. By default it goes on with the last
attack's delta; ours begins at random tokens, as in the command its authors give, so that a resumed run needs no memory
of it. Every sample has its own stop, and the loss is taken at the timestep where it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.methods.base import Job, StepBatches
from erasure.methods.guidance.base import NegativeGuidance
from erasure.models import Model
from erasure.training.loop import TrainingResult
from erasure.training.text_encoder import TextEncoderView


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(NegativeGuidance):
    """Negative guidance learned by the text encoder, under attack."""

    moves: ClassVar[Literal["network", "text encoder", "nothing"]] = "text encoder"
    needs_original: ClassVar[bool] = False  # the bound prompts are the original's
    presets: ClassVar[dict[str, dict[str, Any]]] = {"nudity": {"gamma": 0.3}}

    learning_rate: Annotated[float, "step size"] = 1e-5
    gamma: Annotated[float, "weight of the retain loss"] = 0.5
    retain_prompts: Annotated[int, "retain prompts for each sample of a step"] = 5
    warmup: Annotated[int, "first steps, without attack"] = 200
    attack_steps: Annotated[int, "steps of the attack"] = 30
    attack_step_size: Annotated[float, "how far each of them moves every number of the prefix, alpha"] = 1e-3
    prefix_tokens: Annotated[int, "learned tokens before the prompt, k"] = 1

    def check(self, task: Task) -> None:
        """Also: what belongs to the attack and to the retain loss is in range."""
        super().check(task)
        if min(self.warmup, self.attack_steps) < 0 or min(self.retain_prompts, self.prefix_tokens) < 1:
            raise OptionError(
                "--warmup and --attack-steps must be at least 0, --retain-prompts and --prefix-tokens at least 1"
            )
        if not (0 <= self.gamma < math.inf and 0 < self.attack_step_size < math.inf):
            raise OptionError("--gamma must be at least 0, --attack-step-size above 0")

    def check_model(self, model: Model) -> None:
        """A Stable Diffusion with one text encoder, whose window has room for the prefix."""
        part = self.part_of(model)
        super().check_model(part)
        if self.prefix_tokens > part.window - 3:  # start, one word, end
            raise OptionError(f"--prefix-tokens {self.prefix_tokens}: this text encoder reads {part.window} tokens")

    def part_of(self, model: Model) -> TextEncoderView:
        """The text encoder."""
        return TextEncoderView.of(model)

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Minimise the loss, then bind the prompts as the text encoder reads them now."""
        part = self.part_of(model)
        try:
            return super().erase(part, replace(job, on_step=part.looking(job.on_step)))
        finally:
            part.whole.set_prompts(part.whole.class_names)

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """The original samples and answers without graph; the text encoder reads all prompts in one pass with it."""
        assert isinstance(model, TextEncoderView)
        part, parts, generator = draws.step.part, draws.step.parts, draws.generator
        asked, kept = self.batch_size, self.batch_size * self.retain_prompts
        retained = torch.tensor(task.retain)[torch.randint(0, len(task.retain), (kept,), generator=generator)]
        labels = torch.cat([draws.asked(task, asked)[part::parts], retained[part::parts]])
        noise = torch.randn((asked + kept, *model.sample_shape), generator=generator)
        stops = torch.randint(0, self.sampling_steps, (asked + kept,), generator=generator)
        tokens = torch.randint(0, model.vocabulary, (asked, self.prefix_tokens), generator=generator)[part::parts]
        noise, stops = (torch.cat([value[:asked][part::parts], value[asked:][part::parts]]) for value in (noise, stops))
        noisy, timesteps = model.whole.partly_sampled(
            noise, labels, stops, num_inference_steps=self.sampling_steps, guidance_scale=self.sampling_guidance
        )
        labels, count = labels.to(noisy.device), len(tokens)
        with torch.no_grad():
            answers = model.whole.predict(noisy, timesteps, labels).float()
        first = (noisy[:count], timesteps[:count])
        target = self.target(model.whole, *first, labels[:count])
        ids, prefix = model.ids[labels], None
        if draws.step.index >= self.warmup:
            ids[:count] = behind(ids[:count], tokens.to(ids.device))
            prefix = self.attacked(model, *first, ids[:count], answers[:count])
        read = [model.read(ids[:count], prefix), model.read(ids[count:])]
        errors = model.criterion(
            model.predict_under(noisy, timesteps, torch.cat(read)), torch.cat([target, answers[count:]])
        )
        forget, retain = errors[:count].mean(), errors[count:].mean()
        return {"loss": forget + self.gamma * retain, "forget": forget, "retain": retain}

    def attacked(
        self, model: TextEncoderView, noisy: Tensor, timesteps: Tensor, ids: Tensor, original: Tensor
    ) -> Tensor:
        """Token embeddings (b, k, d) under which the model comes nearer to the `original` answers (b, c, h, w).

        They begin at those of `ids` (b, window), after the start token. No weight gets a gradient.
        """
        prefix = model.tokens(ids[:, 1 : 1 + self.prefix_tokens])
        for _ in range(self.attack_steps):
            prefix.requires_grad_(True)
            answer = model.predict_under(noisy, timesteps, model.read(ids, prefix))
            (slope,) = torch.autograd.grad(model.criterion(answer, original).sum(), prefix)
            prefix = (prefix - self.attack_step_size * slope.sign()).detach()
        return prefix


def behind(ids: Tensor, tokens: Tensor) -> Tensor:
    """Prompts `ids` (b, window) behind `tokens` (b, k); as many are lost before the last, padding if there is any."""
    return torch.cat([ids[:, :1], tokens, ids[:, 1 : -1 - tokens.shape[1]], ids[:, -1:]], dim=1)
