"""concept_ablation: on images of an anchor, the concept is answered as the anchor is (Kumari et al., 2023).

L = |e(x_t, c) - sg e(x_t, a)|^2 + alpha L(x_t, a), the model-based variant and its regularisation, on images x of the
anchor a; https://arxiv.org/abs/2303.13516. `--variant noise` asks for the noise in x_t in place of e(x_t, a). The
stopped gradient is that of the network in training, as in the paper, or with `--teacher original` the original's. Only
keys and values of cross-attention move, where a network has it: AdamW, 100 steps of 4 images at 2e-6 an image.

The images are the retain images of the anchors; for anchors without any the original draws 1,000 in all, as in the
paper, kept in the user's cache. Both terms share one noised sample, where the official code draws two, and images are
not scaled, nor mirrored unless their data set is. On classes every retained one is an anchor unless `--relabel` says
otherwise.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import DataError, NotApplicableError, OptionError
from erasure.data import Batch, Dataset
from erasure.data.task import Task
from erasure.methods.base import GradientMethod, Job, StepBatches
from erasure.methods.relabeling.base import other_labels
from erasure.models import DiffusionModel, Examples, Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.saliency.mask import Mask
from erasure.sampling.draw import SamplingOptions, draw_for_training
from erasure.training.latent_cache import Latents, encoded_once
from erasure.training.loop import TrainingResult
from erasure.training.optimizers import Optimizer

# Through these a network reads text: a UNet, and one where image and text share an attention (SD 3.5 has an attn2 too,
# but no text in it).
READS_TEXT = re.compile(r"\.attentions\..+\.attn2\.to_[kv]\.|\.add_[kv]_proj\.")
TEXT: dict[str, Any] = {"relabel": "anchor", "keys_and_values": True}


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(GradientMethod):
    """Distillation of the anchor's predictions into the concept's prompts."""

    reads: ClassVar[tuple[str, ...]] = ("retain",)
    needs_original: ClassVar[bool] = True
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = dict.fromkeys(("stable_diffusion", "sdxl", "sd3", "flux"), TEXT)

    alpha: Annotated[float, "weight of the model's own loss on the images under the anchor"] = 1.0
    variant: Annotated[
        Literal["model", "noise"], "what is asked for: the prediction under the anchor, or the noise"
    ] = "model"
    teacher: Annotated[Literal["original", "current"], "whose prediction under the anchor is the target"] = "current"
    relabel: Annotated[
        str, "the anchor of what is forgotten: anchor (of a prompt), random (any retained class), next, or a class"
    ] = "random"
    keys_and_values: Annotated[bool, "only keys and values that read text may move"] = False
    num_anchor_images: Annotated[int, "images the original draws, where anchors have no retain images"] = 1000
    anchor_inference_steps: Annotated[int | None, "denoising steps of these images"] = None
    steps: Annotated[int, "optimiser steps"] = 100
    batch_size: Annotated[int, "images of anchors a step"] = 4
    learning_rate: Annotated[float, "step size"] = 8e-6
    optimizer: Annotated[Optimizer, "optimiser"] = "adamw"
    weight_decay: Annotated[float, "weight decay (of the weights that may move)"] = 0.01

    def check(self, task: Task) -> None:
        """Also: there are anchors, and images of them may be drawn."""
        super().check(task)
        if task.samples:
            raise OptionError(
                "concept_ablation forgets what a class or a prompt asks for, not single samples: name classes with "
                "--forget"
            )
        if not 0 <= self.alpha < math.inf or self.num_anchor_images < 1:
            raise OptionError("--alpha and --num-anchor-images must be at least 0 and 1")
        self.pairs(task)

    def check_model(self, model: Model) -> None:
        """A diffusion model that can be asked for something."""
        if not isinstance(model, DiffusionModel) or not model.conditional:
            kind = f"a {model.family}" if not isinstance(model, DiffusionModel) else "an unconditional network"
            raise NotApplicableError(f"{kind} cannot be asked for an anchor: this needs a conditional diffusion model")
        super().check_model(model)
        if not any(self.trains(name) for name, _ in model.network.named_parameters()):
            raise NotApplicableError("this network has no keys and values that read text: give --no-keys-and-values")

    def trains(self, name: str) -> bool:
        """With `keys_and_values` only those through which text is read."""
        return super().trains(name) and (not self.keys_and_values or bool(READS_TEXT.search(name)))

    def pairs(self, task: Task) -> list[tuple[int, int]]:
        """Every (label to forget, label of an anchor of it)."""
        if self.relabel == "random":
            return [(forget, anchor) for forget in task.forget for anchor in task.retain]
        anchors = other_labels(self.relabel, torch.tensor(task.forget), task, torch.Generator())
        return list(zip(task.forget, anchors.tolist(), strict=True))

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Find images of the anchors, and minimise the loss on them."""
        self.check(job.task)
        self.check_model(model)
        return super().erase(model, replace(job, retain=self._images(model, job)))

    def loop_of(self, job: Job) -> Any:
        """A pass is one over the images of anchors."""
        return self.loop(len(job.retain))

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """One forward of the teacher without graph, one joint forward under concept and anchor."""
        part, parts = draws.step.part, draws.step.parts
        batch = draws.retain
        concept = self._concepts(batch.labels, task, draws.generator)[part::parts]
        kept = model.examples(batch, draws.generator).part(part, parts)
        forget = kept._replace(inputs=(*kept.inputs[:2], concept.to(kept.inputs[0].device)))
        if self.variant == "model":
            own = Batch(batch.images[part::parts], batch.labels[part::parts])
            forget = model.relabeled(forget, own, frozen)
        errors = model.per_sample_loss(Examples.joined(forget, kept))
        forget_loss, retain_loss = errors[: len(forget.weight)].mean(), errors[len(forget.weight) :].mean()
        return {"loss": forget_loss + self.alpha * retain_loss, "forget": forget_loss, "retain": retain_loss}

    def _original(self, model: Model, mask: Mask | None, copy: Model | None = None) -> tuple[Model, int]:
        """No second network where the teacher is the one in training."""
        current = self.teacher == "current" or self.variant == "noise"
        return (model, 0) if current else super()._original(model, mask, copy)

    def _concepts(self, anchors: Tensor, task: Task, generator: torch.Generator) -> Tensor:
        """For each of `anchors` (b,) a label to forget that it is an anchor of, drawn evenly, (b,)."""
        pairs = self.pairs(task)
        drawn = torch.rand(len(anchors), generator=generator, dtype=torch.float64).tolist()
        choices = [[forget for forget, anchor in pairs if anchor == label] for label in anchors.tolist()]
        return torch.tensor([c[int(share * len(c))] for c, share in zip(choices, drawn, strict=True)])

    def _images(self, model: Model, job: Job) -> Dataset:
        """The retain images of anchors, and drawn ones of those that have none."""
        anchors = sorted({anchor for _, anchor in self.pairs(job.task)})
        kept = job.retain.of_classes(anchors)
        missing = [anchor for anchor in anchors if anchor not in kept.labels]
        if not missing:
            return kept
        if not isinstance(model, StableDiffusion):
            raise DataError(f"no image of {model.class_names[missing[0]]!r} is retained: give another --relabel")
        drawn = self._drawn(model, missing, job.seed)
        return Latents.joined([kept, drawn]) if isinstance(kept, Latents) and len(kept) else drawn

    def _drawn(self, model: StableDiffusion, anchors: list[int], seed: int) -> Latents:
        """`num_anchor_images` of `anchors` by the model as it is now, encoded."""
        settings = SamplingOptions(num_inference_steps=self.anchor_inference_steps)
        prompts, parts_hash = model.bound.prompts, model.parts_hash
        asked = [(label, prompts[label]) for label in (anchors * self.num_anchor_images)[: self.num_anchor_images]]
        samples = draw_for_training(model, parts_hash, asked, settings, seed, "of anchors")
        dataset = Dataset("generated-anchors", "train", samples.images, samples.labels, prompts)
        return encoded_once(model, dataset, parts_hash)
