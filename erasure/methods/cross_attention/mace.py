"""mace: closed-form refinement, low-rank factors against attention, closed-form fusion (Lu et al., 2024).

MACE (https://arxiv.org/abs/2403.06135), on the key and value matrices W of every cross-attention, in three parts:

1. What other words know of the concept goes. W' minimises sum_f |W' e_f - W e_g|^2 + lambda_1 sum_p |W' e_p - W e_p|^2,
   with e_f the embeddings behind the concept's words in the prompts to forget, e_g those at the same places behind its
   anchor, e_p all of the prompts that are kept.
2. Factors of rank 1 a concept learn to minimise sum over layers of |A_c * M|^2, with A_c the cross-attention maps of
   the concept's own words on images of it, M the region that shows it, and timesteps drawn with density
   sigma(0.05 (t - 200)) - sigma(0.05 (t - 400)).
3. One W* takes in all factors: sum_i sum_{e of i} |W* e - (W' + dW_i) e|^2 + lambda_2 sum_p |W* e_p - W e_p|^2.

Defaults are those of the official configuration for celebrities (50 steps of one image at 1e-4); `--preset object` and
`--preset explicit` those of its two others. We depart from the method where its parts are not at hand: M comes from no
segmentation but from the concept's own map before its factors (`--region attention`, places above half of the largest
value), or is the whole image; what is kept are the retained prompts, not the captions of MS-COCO, so that lambda_1 and
lambda_2 are 1 where the official configurations weigh a much longer sum by 1e-4 or less; and lambda |W' - W|^2 is
added, without which directions that no prompt has would be left open. All factors are trained in one run, each on
images of its own concept: prompts are of one concept when the tokens are the same in which they differ from their
anchors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import DivergedError, OptionError
from erasure.core.rng import derive_seed
from erasure.data import Batch, Batches
from erasure.data.task import Task
from erasure.methods.base import Job, Method, Options
from erasure.methods.cross_attention.closed_form import in_range, matrices_of, solved, write
from erasure.methods.cross_attention.keys import keys_of
from erasure.methods.cross_attention.token_spans import Concepts, need_cross_attention
from erasure.models import Examples, Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.attention_maps import AttentionMaps
from erasure.training.loop import Step, TrainingConfig, TrainingResult, minimize
from erasure.training.lora_layers import SeveralFactors, is_factor

SLOPE, FIRST, SECOND = 0.05, 200, 400  # of the density of timesteps, of 1000 (the paper's gamma, t_1 and t_2)


@dataclass(frozen=True, kw_only=True)
class MACE(Method):
    """Refinement, factors, fusion."""

    reads: ClassVar[tuple[str, ...]] = ("forget",)
    no_mask: ClassVar[str] = "its matrices are solutions of systems, and a masked part of them solves nothing"

    presets: ClassVar[Mapping[str, Options]] = {
        "object": {"learning_rate": 1e-5},
        "explicit": {"learning_rate": 1e-5, "steps": 120, "focus": False},
    }

    steps: Annotated[int, "optimiser steps of the factors; 0 changes nothing at all"] = 50
    batch_size: Annotated[int, "forget images per step"] = 1
    learning_rate: Annotated[float, "learning rate of the factors"] = 1e-4
    rank: Annotated[int, "rank of the factors of each concept and matrix"] = 1
    refine_scale: Annotated[float, "lambda_1: weight of retained prompts in the refinement"] = 1.0
    fuse_scale: Annotated[float, "lambda_2: weight of retained prompts in the fusion"] = 1.0
    ridge: Annotated[float, "weight of the squared distance from the matrices before, in both"] = 0.1
    region: Annotated[
        Literal["attention", "all"], "the region M of the concept: where its own map is high, or the whole image"
    ] = "attention"
    threshold: Annotated[float, "share of the largest value of a map above which a place is in the region"] = 0.5
    focus: Annotated[bool, "draw timesteps mostly where concepts take shape (200 to 400 of 1000), not uniformly"] = True
    checkpoint_every: Annotated[int, "steps between checkpoints, from which a killed run continues"] = 50

    def check(self, task: Task) -> None:
        """Raise OptionError for an option outside its range."""
        self._loop().check(self.batch_size)
        for name in ("refine_scale", "fuse_scale", "ridge"):
            in_range(f"--{name.replace('_', '-')}", getattr(self, name))
        if self.rank < 1 or not 0 <= self.threshold < 1:
            raise OptionError("--rank must be at least 1, --threshold in [0, 1)")

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a network without cross-attention."""
        need_cross_attention(model, "mace")

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Refine, train the factors, and fuse them."""
        self.check(job.task)
        self.check_model(model)
        assert isinstance(model, StableDiffusion)
        if not self.steps:
            return TrainingResult([], 0.0)
        began = time.perf_counter()
        concepts = Concepts.of(model, job.task)
        kept = keys_of(model, job.task, "rest").gram
        matrices = matrices_of(model.network)
        originals = {name: matrix.detach().cpu().double() for name, matrix in matrices.items()}
        operator = refined(*concepts.pairs, kept, self.refine_scale, self.ridge)
        refinements = {name: original @ operator for name, original in originals.items()}
        for name, matrix in refinements.items():
            write(matrices[name], name, matrix)
        modules = {name: model.network.get_submodule(name.removesuffix(".weight")) for name in matrices}
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "factors"))
        with SeveralFactors(modules, len(concepts.grams), self.rank, generator) as factors:
            spent = time.perf_counter() - began
            outcome, diverged = TrainingResult([], 0.0), None
            try:
                outcome = self._trained(model, job, concepts, factors)
            except DivergedError as error:  # what is kept are the factors of its last good step
                if not error.step:
                    raise
                diverged = error
            began = time.perf_counter()
            changes = {name: factors.changes(name) for name in matrices}
        for name, matrix in refinements.items():
            way = fused(matrix, changes[name], concepts.grams, originals[name], kept, self.fuse_scale, self.ridge)
            write(matrices[name], name, matrix + way)
        if diverged is not None:
            raise diverged
        return replace(outcome, seconds=outcome.seconds + spent + time.perf_counter() - began)

    def _loop(self) -> TrainingConfig:
        return TrainingConfig(self.steps, self.learning_rate, checkpoint_every=self.checkpoint_every)

    def _trained(self, model: StableDiffusion, job: Job, concepts: Concepts, factors: SeveralFactors) -> TrainingResult:
        """Train the factors on images of the concepts; the loss is the squared attention to the concepts' words."""
        images = Batches(job.forget, self.batch_size, derive_seed(job.seed, "forget"))

        def loss(step: Step) -> dict[str, Tensor]:
            examples = step.own(self._noised(model, images.at(step.index), step.generator))
            labels = examples.inputs[2]
            words, region = concepts.words[labels], None
            if self.region == "attention":
                with torch.no_grad():
                    model.prediction(examples.inputs)
                seen = maps.mean(words, (int(examples.target.shape[-2]), int(examples.target.shape[-1])))
                region = seen > self.threshold * seen.amax((1, 2), keepdim=True)
            factors.chosen = concepts.chosen[labels]
            model.prediction(examples.inputs)
            factors.chosen = None  # other predictions on the way see the refinement alone
            return {"loss": maps.squares(words, region).mean()}

        model.network.train()
        try:
            with AttentionMaps(model.network) as maps:
                return minimize(
                    model.network,
                    loss,
                    self._loop(),
                    seed=job.seed,
                    trains=is_factor,
                    folder=job.folder,
                    fingerprint=job.fingerprint,
                    description="MACE",
                    on_step=job.on_step,
                )
        finally:
            model.network.eval()

    def _noised(self, model: StableDiffusion, batch: Batch, generator: torch.Generator) -> Examples:
        """The model's own questions, or with `focus` the same at timesteps of the paper's density."""
        examples = model.examples(batch, generator)
        if not self.focus:
            return examples
        timesteps = torch.multinomial(
            density(model.num_train_timesteps), len(batch.labels), replacement=True, generator=generator
        )
        samples = model.encoded(batch.images, generator)
        noise = torch.randn(samples.shape, generator=generator)
        noisy, target = model.add_noise(samples, noise, timesteps), model.target(samples, noise, timesteps)
        inputs = tuple(value.to(model.device) for value in (noisy, timesteps, batch.labels))
        return examples._replace(inputs=inputs, target=target.to(model.device))


def density(num_train_timesteps: int) -> Tensor:
    """How often each timestep is drawn (T,), up to a factor: about evenly between a fifth and two fifths of them."""
    place = torch.arange(num_train_timesteps, dtype=torch.float64) * 1000 / num_train_timesteps
    return torch.sigmoid(SLOPE * (place - FIRST)) - torch.sigmoid(SLOPE * (place - SECOND))


def refined(before: Tensor, after: Tensor, kept: Tensor, scale: float, ridge: float) -> Tensor:
    """T (d, d), float64: W T minimises |W' e_f - W e_g|^2 + scale |W' e_p - W e_p|^2 + ridge |W' - W|^2.

    `before` (n, d) are the e_f, `after` (n, d) the e_g, `kept` (d, d) the sum of e_p e_p^T.
    """
    unit = torch.eye(kept.shape[0], dtype=torch.float64)
    system = before.T @ before + scale * kept + ridge * unit
    return unit + solved(system, before.T @ (after - before))[0].T


def fused(
    matrix: Tensor,
    changes: Tensor,
    grams: Tensor,
    original: Tensor,
    kept: Tensor,
    scale: float,
    ridge: float,
) -> Tensor:
    """X (out, d), float64: W* = W' + X takes in the `changes` dW_i (n, out, d) of the refined `matrix` W' (out, d).

    It minimises sum_i |(W* - W' - dW_i) e|^2 over the keys e of concept i, whose sum of e e^T is `grams` (n, d, d), and
    scale |W* e_p - W e_p|^2 + ridge |W* - W'|^2.
    """
    unit = torch.eye(kept.shape[0], dtype=torch.float64)
    system = grams.sum(0) + scale * kept + ridge * unit
    way = (changes @ grams).sum(0) + scale * (original - matrix) @ kept
    return solved(system, way.T)[0].T
