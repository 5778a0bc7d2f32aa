"""selective_amnesia: learn a surrogate, hold the weights that a Fisher matrix calls important (Heng and Soh, 2023).

L = L(x_q, c_f) + gamma L(D_r) + lambda sum_i F_i / 2 (theta_i - theta_0,i)^2; https://arxiv.org/abs/2305.10120, the
objective with a surrogate (generative replay and elastic weight consolidation). x_q are images of uniform noise on a
class-conditional network, and images of the anchor on a text-to-image model. F is the mean squared gradient of the
original's loss over samples of what is kept, one noise and timestep a sample; the paper sums the bound over all
timesteps of a sample instead.

lambda has the paper's meaning for losses that are sums over the d values of a sample: with our means F is d^2 times
smaller and the loss d times, so that lambda is multiplied by d. The factor 1/2 is the paper's; the official code leaves
it out.

What is replayed is drawn by the original (`--replay generated`, the paper's way, which needs no training data), or the
retain set (`--replay data`); text-to-image models draw their retain set themselves. F and the original of each free
weight are held in memory. Both are made anew, to the same bits, when a killed run continues.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.logging import log_user
from erasure.core.rng import derive_seed
from erasure.data import Batch, Dataset
from erasure.data.images import to_uint8
from erasure.data.task import Task
from erasure.methods.base import DISTILLED, LATENT, GradientMethod, Job, StepBatches
from erasure.models import DiffusionModel, Examples, Model
from erasure.training.curvature import WeightSpace, diagonal_fisher
from erasure.training.loop import TrainingResult
from erasure.training.masked_parameters import taken

# The official configurations for Stable Diffusion.
TEXT: dict[str, Any] = {
    **LATENT,
    "batch_size": 4,
    "epochs": 200.0,
    "penalty": 50.0,
}


@dataclass(frozen=True, kw_only=True)
class SelectiveAmnesia(GradientMethod):
    """Surrogate, replay and elastic weight consolidation."""

    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        **dict.fromkeys(("stable_diffusion", "sdxl", "sd3"), TEXT),
        "flux": {**DISTILLED, **{key: TEXT[key] for key in TEXT if key != "saliency"}},
    }

    steps: Annotated[int, "optimiser steps"] = 20_000
    gamma: Annotated[float, "weight of the loss on what is replayed"] = 1.0
    penalty: Annotated[float, "weight lambda of the distance from the original, weighed by the Fisher matrix"] = 10.0
    fisher_samples: Annotated[int, "samples that the Fisher matrix is measured on"] = 4500
    surrogate: Annotated[
        Literal["auto", "noise", "anchor"],
        "what is learned under the concept: uniform noise, or images of its anchor; auto: of the anchor if it has one",
    ] = "auto"
    replay: Annotated[
        Literal["auto", "generated", "data"],
        "what is kept: images the model draws of the other classes, or the retain set; auto: generated for classes",
    ] = "auto"
    num_replay_images: Annotated[int, "images drawn with --replay generated, over all classes that are kept"] = 4500

    def check(self, task: Task) -> None:
        """Also: weights and counts are in range, and there are anchors to show."""
        super().check(task)
        if not all(0 <= value < float("inf") for value in (self.gamma, self.penalty)):
            raise OptionError("--gamma and --penalty must be at least 0")
        if min(self.fisher_samples, self.num_replay_images) < 1:
            raise OptionError("--fisher-samples and --num-replay-images must be at least 1")
        if not task.forget:
            raise NotApplicableError(
                "selective_amnesia forgets what has a label: single samples have none of their own"
            )
        if self.surrogate == "anchor" and not task.anchors:
            raise OptionError("--surrogate anchor needs anchors: this task has classes, so give noise")

    def check_model(self, model: Model) -> None:
        """A diffusion model that is asked for something; noise and own images are for those that draw pixels."""
        super().check_model(model)
        if not isinstance(model, DiffusionModel) or not model.conditional:
            raise NotApplicableError(
                "selective_amnesia teaches a model to draw something else when asked: "
                f"{model.source or 'this model'} cannot be asked for anything"
            )
        latent = model.sample_shape != model.image_shape
        if latent and self.surrogate == "noise":
            raise NotApplicableError("--surrogate noise is for models of pixels: give anchor")
        if latent and self.replay == "generated":
            raise NotApplicableError(
                "--replay generated is for classes: this model draws its retain set anyway, give data"
            )

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Draw what is replayed, where it is not the retain set, and minimise the loss."""
        self.check(job.task)
        self.check_model(model)
        assert isinstance(model, DiffusionModel)
        began = time.perf_counter()
        drawn = self.replay == "generated" or (self.replay == "auto" and not job.task.anchors)
        if drawn and self.steps:
            job = replace(job, retain=self._drawn(model, job))
        seconds = time.perf_counter() - began
        outcome = super().erase(model, job)
        return replace(outcome, seconds=outcome.seconds + seconds)

    @contextmanager
    def running(self, model: Model, job: Job) -> Iterator[_Held]:
        """The Fisher matrix of the original, and what else holds the weights near it."""
        yield _Held(self, model, job)

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """One joint forward for the surrogate and the replay, and the distance from the original."""
        held: _Held = draws.own
        part, parts = draws.step.part, draws.step.parts
        shown = model.examples(self._surrogates(model, task, draws), draws.generator).part(part, parts)
        kept = model.examples(draws.retain, draws.generator, condition_drop=True).part(part, parts)
        errors = model.per_sample_loss(Examples.joined(shown, kept))
        surrogate_loss, replay_loss = errors[: len(shown.weight)].mean(), errors[len(shown.weight) :].mean()
        distance = held.distance() * shown.target[0].numel()
        loss = surrogate_loss + self.gamma * replay_loss + self.penalty * distance
        return {"loss": loss, "surrogate": surrogate_loss, "replay": replay_loss, "distance": distance}

    def _surrogates(self, model: Model, task: Task, draws: StepBatches) -> Batch:
        """What is to be learned under the labels to forget, each drawn evenly."""
        labels = draws.asked(task, self.batch_size)
        if self.surrogate == "noise" or not task.anchors:
            return Batch(torch.rand((len(labels), *model.image_shape), generator=draws.generator) * 2 - 1, labels)
        held: _Held = draws.own
        return Batch(held.shown(labels, draws.generator), labels)

    def _drawn(self, model: DiffusionModel, job: Job) -> Dataset:
        """Images that the original draws of the classes that are kept, evenly."""
        kept = job.task.retain
        labels = torch.tensor([kept[i % len(kept)] for i in range(self.num_replay_images)])
        log_user(f"drawing {len(labels)} images to replay")
        images = []
        for start in range(0, len(labels), self.batch_size):
            asked = labels[start : start + self.batch_size]
            seeds = [derive_seed(job.seed, "replay", start + i) for i in range(len(asked))]
            images.append(to_uint8(model.generate(asked, seeds)))
        return Dataset("replay", "train", np.concatenate(images), labels.numpy(), job.task.class_names)


class _Held:
    """What holds the weights near the original: F, and the original itself; and where images of the anchors are."""

    def __init__(self, method: SelectiveAmnesia, model: Model, job: Job) -> None:
        self.space = WeightSpace(model.network, job.mask, method.trains)
        found = diagonal_fisher(model, self.space, job.retain, job.seed, method.fisher_samples)
        self.fisher = found.split(self.space.lengths)
        self.origin = self.space.values().split(self.space.lengths)
        self.retain = job.retain
        self.places = {
            label: np.flatnonzero(job.retain.labels == anchor)
            for label, anchor in zip(job.task.forget, job.task.anchors, strict=False)
        }
        lost = [label for label, places in self.places.items() if not len(places)]
        if lost:
            self.places |= dict.fromkeys(lost, np.arange(len(job.retain)))
            if method.surrogate != "noise":
                name = job.task.class_names[lost[0]]
                log_user(f"note: no image shows the anchor of {name!r}: all images that are kept stand in for it")

    def distance(self) -> Tensor:
        """sum_i F_i / 2 (theta_i - theta_0,i)^2 of the weights as they are, with a gradient."""
        parts = zip(self.space.parts, self.fisher, self.origin, strict=True)
        moved = [
            (weight * (taken(part.parameter, part.selected).flatten() - start).square()).sum()
            for part, weight, start in parts
        ]
        return torch.stack(moved).sum() / 2

    def shown(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """For each of `labels` (b,), a sample of its anchor."""
        chosen = [
            self.places[label][int(torch.randint(0, len(self.places[label]), (), generator=generator))]
            for label in labels.tolist()
        ]
        return self.retain.samples(np.array(chosen))
