"""concept_ablation: on images of an anchor, predict under the concept what the anchor gives (Kumari et al., 2023).

L = |e(x_t, c) - sg e(x_t, a)|^2 + alpha L(x_t, a), the model-based variant and its regularisation, on images x of the
anchor a; https://arxiv.org/abs/2303.13516. `--variant noise` has the noise in x_t as target in place of e(x_t, a). The
target is predicted by the network in training (stopped gradient), as in the paper, or with `--teacher original` by the
original. Only keys and values of cross-attention are trained, where a network has it: AdamW, 100 steps of 4 images, at
a learning rate of 2e-6 per image.

The images are the retain images of the anchors; for anchors without any, the original generates 1,000 in all, as in the
paper, kept in the user's cache. Both terms share one noised sample, where the official code draws two, and images are
not scaled, nor mirrored unless their data set is. On classes every retained one is an anchor unless `--relabel` says
otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import DataError, NotApplicableError, OptionError
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.methods.base import GradientMethod, Job, Options, StepBatches
from erasure.methods.relabeling.base import other_labels
from erasure.models import DiffusionModel, Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.sampling.draw import SamplingOptions, draw_for_training
from erasure.training.latent_cache import Latents, encoded_once
from erasure.training.optimizers import Optimizer

# Through these a network reads text: a UNet, and one where image and text share an attention (SD 3.5 has an attn2 too,
# but no text in it).
READS_TEXT = re.compile(r"\.attentions\..+\.attn2\.to_[kv]\.|\.add_[kv]_proj\.")
TEXT: Options = {"relabel": "anchor", "keys_and_values": True}


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(GradientMethod):
    """Distillation of the anchor's predictions into the concept's prompts."""

    reads: ClassVar[tuple[str, ...]] = ("retain",)
    needs_original: ClassVar[bool] = True
    defaults_of: ClassVar[Mapping[str, Options]] = dict.fromkeys(("stable_diffusion", "sdxl", "sd3", "flux"), TEXT)

    alpha: Annotated[float, "weight of the model's own loss on the images under the anchor"] = 1.0
    variant: Annotated[
        Literal["model", "noise"], "the target under the concept: the prediction under the anchor, or the noise"
    ] = "model"
    teacher: Annotated[Literal["original", "current"], "who predicts the target under the anchor"] = "current"
    relabel: Annotated[
        str, "the anchor of what is erased: anchor (of a prompt), random (any retained class), next, or a class"
    ] = "random"
    keys_and_values: Annotated[bool, "train only keys and values that read text"] = False
    num_anchor_images: Annotated[int, "images that the original generates for anchors without retain images"] = 1000
    anchor_inference_steps: Annotated[int | None, "denoising steps of these images"] = None
    steps: Annotated[int, "optimiser steps"] = 100
    batch_size: Annotated[int, "images of anchors per step"] = 4
    learning_rate: Annotated[float, "learning rate"] = 8e-6
    optimizer: Annotated[Optimizer, "optimiser"] = "adamw"
    weight_decay: Annotated[float, "weight decay (of trainable weights)"] = 0.01

    def check(self, task: Task) -> None:
        """Also raise OptionError for single samples, and for a task without anchors."""
        super().check(task)
        if task.samples:
            raise OptionError(
                "concept_ablation erases what a class or a prompt asks for, not single samples: name classes with "
                "--forget"
            )
        if not 0 <= self.alpha < math.inf or self.num_anchor_images < 1:
            raise OptionError("--alpha and --num-anchor-images must be at least 0 and 1")
        self.pairs(task)

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for anything but a conditional diffusion model."""
        if not isinstance(model, DiffusionModel) or not model.conditional:
            kind = f"a {model.family}" if not isinstance(model, DiffusionModel) else "an unconditional network"
            raise NotApplicableError(f"{kind} takes no anchor as its condition: use a conditional diffusion model")
        super().check_model(model)
        if not any(self.trains(name) for name, _ in model.network.named_parameters()):
            raise NotApplicableError("this network has no keys and values that read text: give --no-keys-and-values")

    def trains(self, name: str) -> bool:
        """Whether it is trained; with `keys_and_values` only keys and values that read text are."""
        return super().trains(name) and (not self.keys_and_values or bool(READS_TEXT.search(name)))

    def pairs(self, task: Task) -> list[tuple[int, int]]:
        """Every (label to forget, label of an anchor of it)."""
        if self.relabel == "random":
            return [(forget, anchor) for forget in task.forget for anchor in task.retain]
        anchors = other_labels(self.relabel, torch.tensor(task.forget), task, torch.Generator())
        return list(zip(task.forget, anchors.tolist(), strict=True))

    def uses_original(self) -> bool:
        """Whether the original predicts the target; the network in training needs no copy."""
        return self.teacher == "original" and self.variant == "model"

    def with_own_images(self, model: Model, job: Job) -> Job:
        """The job with images of the anchors as its retain set."""
        return replace(job, retain=self._images(model, job))

    def images_per_epoch(self, job: Job) -> int:
        """The images of anchors."""
        return len(job.retain)

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the loss under the concept plus alpha times the loss under the anchor, of the same noised samples."""
        concepts = batches.own(self._concepts(batches.retain_batch.labels, task, batches.generator))
        anchors = batches.own(model.examples(batches.retain_batch, batches.generator))
        forget = anchors._replace(inputs=(*anchors.inputs[:2], concepts.to(anchors.inputs[0].device)))
        if self.variant == "model":
            forget = model.relabeled(forget, batches.own(batches.retain_batch), original)
        forget_loss, retain_loss = batches.losses(model, forget, anchors)
        return {"loss": forget_loss + self.alpha * retain_loss, "forget": forget_loss, "retain": retain_loss}

    def _concepts(self, anchors: Tensor, task: Task, generator: torch.Generator) -> Tensor:
        """For each of `anchors` (b,) a label to forget that it is an anchor of, drawn uniformly, (b,)."""
        pairs = self.pairs(task)
        drawn = torch.rand(len(anchors), generator=generator, dtype=torch.float64).tolist()
        choices = [[forget for forget, anchor in pairs if anchor == label] for label in anchors.tolist()]
        return torch.tensor([c[int(share * len(c))] for c, share in zip(choices, drawn, strict=True)])

    def _images(self, model: Model, job: Job) -> Dataset:
        """The retain images of anchors, and generated ones of anchors that have none."""
        anchors = sorted({anchor for _, anchor in self.pairs(job.task)})
        kept = job.retain.of_classes(anchors)
        missing = [anchor for anchor in anchors if anchor not in kept.labels]
        if not missing:
            return kept
        if not isinstance(model, StableDiffusion):
            raise DataError(f"no image of {model.class_names[missing[0]]!r} is retained: give another --relabel")
        generated = self._generated(model, missing, job.seed)
        return Latents.joined([kept, generated]) if isinstance(kept, Latents) and len(kept) else generated

    def _generated(self, model: StableDiffusion, anchors: list[int], seed: int) -> Latents:
        """Generate `num_anchor_images` images of `anchors` with the original, and encode them."""
        settings = SamplingOptions(num_inference_steps=self.anchor_inference_steps)
        prompts, parts_hash = model.bound.prompts, model.parts_hash
        pairs = [(label, prompts[label]) for label in (anchors * self.num_anchor_images)[: self.num_anchor_images]]
        samples = draw_for_training(model, parts_hash, pairs, settings, seed, "of anchors")
        dataset = Dataset("generated-anchors", "train", samples.images, samples.labels, prompts)
        return encoded_once(model, dataset, parts_hash)
