"""advunlearn: the text encoder unlearns a concept against adversarial prompts (Zhang et al., 2024).

https://arxiv.org/abs/2405.15234. Only the text encoder is trained, so it can be used in other models with the same text
encoder. With c* the prompt c behind k learned token embeddings delta, and e_0 the original,

    attack   delta <- delta - alpha sign(d/d delta |e(z_t, c*) - e_0(z_t, c)|^2), from random tokens in each step
    loss     |e(z_t, c*) - (e_0(z_t, 0) - eta (e_0(z_t, c) - e_0(z_t, 0)))|^2 + gamma |e(z_t, c_r) - e_0(z_t, c_r)|^2

The first --warmup steps use c itself. z_t is a sample of c, or of c_r, that the original generates under guidance 3,
stopped at a random one of 50 steps. The retain prompts c_r are the task's. --gamma is the 0.5 of objects and styles,
`--preset nudity` has 0.3; --attack-steps 1 is the fast variant.

We depart from the official code: its attack steps are Adam's, and each samples its own z_t; ours follow the sign of the
gradient, as in the paper, at the z_t of the loss, which saves 30 samplings per step. By default the official code
continues from the last attack's delta; ours starts at random tokens, as in the command that its authors give, so a
resumed run needs no state of it. Every sample has its own stop, and the loss is taken at the timestep it has reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.methods.base import Job, Options, StepBatches, TrainingSetup
from erasure.methods.guidance.base import NegativeGuidance
from erasure.models import Model
from erasure.training.text_encoder import TextEncoderView


class _Samples(NamedTuple):
    """Our part of a step's noisy samples: those of prompts to forget first, one for each row of `tokens` (n, k).

    `noisy` (b, c, h, w), `timesteps` (b,), `labels` (b,) of the prompts; `tokens` are random ids for the attack.
    """

    noisy: Tensor
    timesteps: Tensor
    labels: Tensor
    tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(NegativeGuidance):
    """Negative guidance trained into the text encoder against adversarial prompts."""

    moves: ClassVar[Literal["network", "text encoder", "nothing"]] = "text encoder"
    needs_original: ClassVar[bool] = False  # the whole model keeps the original's prompt embeddings
    presets: ClassVar[Mapping[str, Options]] = {"nudity": {"gamma": 0.3}}

    learning_rate: Annotated[float, "learning rate"] = 1e-5
    gamma: Annotated[float, "weight of the retain loss"] = 0.5
    retain_prompts: Annotated[int, "retain prompts per sample of a step"] = 5
    warmup: Annotated[int, "first steps, which are taken without attack"] = 200
    attack_steps: Annotated[int, "steps of the attack"] = 30
    attack_step_size: Annotated[float, "change of every number of the prefix in an attack step, alpha"] = 1e-3
    prefix_tokens: Annotated[int, "learned tokens before the prompt, k"] = 1

    def check(self, task: Task) -> None:
        """Also raise OptionError for an option of the attack or the retain loss outside its range."""
        super().check(task)
        if min(self.warmup, self.attack_steps) < 0 or min(self.retain_prompts, self.prefix_tokens) < 1:
            raise OptionError(
                "--warmup and --attack-steps must be at least 0, --retain-prompts and --prefix-tokens at least 1"
            )
        if not (0 <= self.gamma < math.inf and 0 < self.attack_step_size < math.inf):
            raise OptionError("--gamma must be at least 0, --attack-step-size above 0")

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a model without exactly one text encoder, OptionError for too long a prefix."""
        part = self.part_of(model)
        super().check_model(part)
        if self.prefix_tokens > part.window - 3:  # start, one word, end
            raise OptionError(f"--prefix-tokens {self.prefix_tokens}: this text encoder reads {part.window} tokens")

    def part_of(self, model: Model) -> TextEncoderView:
        """The text encoder."""
        return TextEncoderView.of(model)

    @contextmanager
    def prepared(self, model: Model, job: Job) -> Iterator[TrainingSetup]:
        """Train on the view of the text encoder; afterwards encode the prompts again with the trained one."""
        assert isinstance(model, TextEncoderView)
        try:
            yield TrainingSetup(replace(job, on_step=model.with_current_prompts(job.on_step)))
        finally:
            model.whole.set_prompts(model.whole.class_names)

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the loss under attack plus gamma times the retain loss, all prompts encoded in one forward pass."""
        assert isinstance(model, TextEncoderView)
        noisy, timesteps, labels, tokens = self._sampled(model, task, batches)
        count = len(tokens)
        with torch.no_grad():
            originals = model.whole.predict(noisy, timesteps, labels).float()
        target = self.target(model.whole, noisy[:count], timesteps[:count], labels[:count])
        ids, prefix = model.ids[labels], None
        if batches.step.index >= self.warmup:
            ids[:count] = behind(ids[:count], tokens.to(ids.device))
            prefix = self.attacked(model, noisy[:count], timesteps[:count], ids[:count], originals[:count])
        embeddings = torch.cat([model.read(ids[:count], prefix), model.read(ids[count:])])
        predictions = model.predict_under(noisy, timesteps, embeddings)
        losses = model.criterion(predictions, torch.cat([target, originals[count:]]))
        forget, retain = losses[:count].mean(), losses[count:].mean()
        return {"loss": forget + self.gamma * retain, "forget": forget, "retain": retain}

    def _sampled(self, model: TextEncoderView, task: Task, batches: StepBatches) -> _Samples:
        """Samples that the original generates, of prompts to forget and of retain prompts."""
        forget, retain, generator = self.batch_size, self.batch_size * self.retain_prompts, batches.generator

        def own(values: Tensor) -> Tensor:  # our part of both
            return torch.cat([batches.own(values[:forget]), batches.own(values[forget:])])

        retained = torch.tensor(task.retain)[torch.randint(0, len(task.retain), (retain,), generator=generator)]
        labels = own(torch.cat([batches.forget_labels(task, forget), retained]))
        noise = own(torch.randn((forget + retain, *model.sample_shape), generator=generator))
        stops = own(torch.randint(0, self.sampling_steps, (forget + retain,), generator=generator))
        tokens = batches.own(torch.randint(0, model.vocabulary, (forget, self.prefix_tokens), generator=generator))
        noisy, timesteps = model.whole.partly_sampled(
            noise, labels, stops, num_inference_steps=self.sampling_steps, guidance_scale=self.sampling_guidance
        )
        return _Samples(noisy, timesteps, labels.to(noisy.device), tokens)

    def attacked(
        self, model: TextEncoderView, noisy: Tensor, timesteps: Tensor, ids: Tensor, original: Tensor
    ) -> Tensor:
        """Find a prefix under which the model predicts more like the original; no weight gets a gradient.

        Args:
            model: The text encoder in training.
            noisy: Noisy latents, (b, c, h, w).
            timesteps: Their timesteps, (b,).
            ids: Token ids (b, window) of the prompts, with the prefix to start from after the start token.
            original: The original's predictions without prefix, (b, c, h, w).

        Returns:
            Token embeddings of the prefix, (b, k, d).
        """
        prefix = model.tokens(ids[:, 1 : 1 + self.prefix_tokens])
        for _ in range(self.attack_steps):
            prefix.requires_grad_(True)
            prediction = model.predict_under(noisy, timesteps, model.read(ids, prefix))
            (gradient,) = torch.autograd.grad(model.criterion(prediction, original).sum(), prefix)
            prefix = (prefix - self.attack_step_size * gradient.sign()).detach()
        return prefix


def behind(ids: Tensor, tokens: Tensor) -> Tensor:
    """Put `tokens` (b, k) before the prompts `ids` (b, window); as many ids are dropped before the last one."""
    return torch.cat([ids[:, :1], tokens, ids[:, 1 : -1 - tokens.shape[1]], ids[:, -1:]], dim=1)
