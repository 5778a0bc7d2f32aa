"""Relabelling: the loss that SalUn and random_label share (Fan et al., 2024, eq. 5 and 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data import Batch
from erasure.data.task import Task, class_index
from erasure.methods.base import CLASSIFIER, FLUX, STABLE_DIFFUSION, GradientMethod, Options, StepBatches
from erasure.models import Examples, Model

# The class recipe of the paper for Stable Diffusion; the presets of salun name it, and the one for nudity.
CLASS_RECIPE: Options = {**STABLE_DIFFUSION, "relabel": "anchor", "alpha": 0.5}


@dataclass(frozen=True, kw_only=True)
class Relabeling(GradientMethod):
    """L = mean |f(x_f) - f_0(x_f under another label)|^2 + alpha * L(D_r); for classifiers the other label itself."""

    needs_original: ClassVar[bool] = True
    defaults_of: ClassVar[Mapping[str, Options]] = {
        "classifier": {**CLASSIFIER, "learning_rate": 0.013, "epochs": 10.0, "batch_size": 256},
        "stable_diffusion": CLASS_RECIPE,
        "sdxl": CLASS_RECIPE,
        "sd3": CLASS_RECIPE,
        "flux": {**CLASS_RECIPE, **FLUX},
    }

    alpha: Annotated[
        float, "weight of the retain loss; both losses are means, so the official 1e-3 of a sum is 3.07 at 32 x 32 x 3"
    ] = 1.0
    relabel: Annotated[
        str,
        "the other label: random (a retained class drawn for each image), next, anchor (of a prompt), or a class; of "
        "single samples, any class but their own",
    ] = "random"
    teacher: Annotated[Literal["original", "current"], "who predicts the target under the other label"] = "original"
    retain_reduction: Annotated[Literal["mean", "sum"], "sum: the retain loss is summed over pixels (official)"] = (
        "mean"
    )
    forget_condition_drop: Annotated[bool, "drop labels of forget images too (official)"] = False
    clip_before_mask: Annotated[bool, "clip gradients before the mask is applied (official)"] = False

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the loss on relabelled forget images plus alpha times the retain loss, from one joint forward pass."""
        forget = batches.forget_examples(model, condition_drop=self.forget_condition_drop)
        anchor = batches.own(self.anchor(model, task, batches))
        retain = batches.retain_examples(model)
        forget = model.relabeled(forget, anchor, original if self.teacher == "original" else model)
        forget_loss, retain_loss = batches.losses(model, forget, self.retain_targets(retain, original))
        scale = float(retain.target[0].numel()) if self.retain_reduction == "sum" else 1.0
        return {"loss": forget_loss + self.alpha * scale * retain_loss, "forget": forget_loss, "retain": retain_loss}

    def retain_targets(self, retain: Examples, original: Model) -> Examples:
        """The retain examples with the targets they are trained towards; here those of the data."""
        return retain

    def check(self, task: Task) -> None:
        """Also raise OptionError unless the other label is a retained one."""
        super().check(task)
        other_labels(self.relabel, torch.tensor(task.forget, dtype=torch.int64), task, torch.Generator())

    def anchor(self, model: Model, task: Task, batches: StepBatches) -> Batch:
        """For each forget image of the whole batch another label, and a retain image for networks without labels."""
        count = len(batches.forget_batch.labels)
        images = batches.retain_batch.images[torch.arange(count) % len(batches.retain_batch.images)]
        labels = other_labels(self.relabel, batches.forget_batch.labels, task, batches.generator)
        if self.forget_condition_drop:
            labels = model.with_dropped_condition(labels, batches.generator)
        return Batch(images, labels)


def other_labels(rule: str, labels: Tensor, task: Task, generator: torch.Generator, flag: str = "--relabel") -> Tensor:
    """For each of `labels` (b,), all to forget, the label that `rule` puts in its place.

    Args:
        rule: random, next, anchor, or the name or index of a class.
        labels: Labels of forget samples, (b,).
        task: What to forget and what to keep.
        generator: Random numbers of the rule random.
        flag: The option that gave `rule`, for messages.

    Raises:
        OptionError: The rule does not fit the task, or names a class that is not retained.
    """
    if task.samples:
        return _other_than_own(rule, labels, task, generator, flag)
    retain = torch.tensor(task.retain)
    if rule == "anchor":
        if not task.anchors:
            raise OptionError(f"{flag} anchor needs anchors, and this task has classes: give random, next or a class")
        return torch.tensor([task.anchors[task.forget.index(int(label))] for label in labels])
    if rule == "random":
        return retain[torch.randint(0, len(retain), labels.shape, generator=generator)]
    if rule == "next":
        count = len(task.class_names)
        following = {
            c: next(d for d in ((c + i) % count for i in range(1, count)) if d in task.retain) for c in task.forget
        }
        return torch.tensor([following[int(label)] for label in labels])
    chosen = class_index(rule, task.class_names)
    if chosen not in (*task.retain, *task.anchors):
        why = "to be erased" if chosen in task.forget else "already erased"
        raise OptionError(f"{flag} {rule} is itself {why}: give a retained class, random or next")
    return torch.full_like(labels, chosen)


def _other_than_own(rule: str, labels: Tensor, task: Task, generator: torch.Generator, flag: str) -> Tensor:
    """For single samples: another label than each one's own, uniform over the retained classes, or the next of them."""
    if rule not in ("random", "next"):
        raise OptionError(f"{flag} {rule} is for whole classes: for single samples give random or next")
    others = [[c for c in task.retain if c != own] for own in range(len(task.class_names))]
    if not all(others):
        raise OptionError("relabelling needs a second retained class, but this data has one")
    if rule == "next":
        following = [next((c for c in group if c > own), group[0]) for own, group in enumerate(others)]
        return torch.tensor(following)[labels]
    sizes = torch.tensor([len(group) for group in others])[labels]
    table = torch.tensor([group + group[:1] * (len(task.retain) - len(group)) for group in others])
    place = (torch.rand(labels.shape, generator=generator, dtype=torch.float64) * sizes).long()
    return table[labels, place]
