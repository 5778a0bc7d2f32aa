"""Relabelling, the loss that SalUn and random_label share (Fan et al., 2024, eq. 5 and 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data import Batch
from erasure.data.task import Task, class_index
from erasure.methods.base import CLASSIFIER, DISTILLED, LATENT, GradientMethod, StepBatches
from erasure.models import Examples, Model

# The class recipe of the paper for Stable Diffusion; the presets of salun name it, and the one for nudity.
CLASS_RECIPE: dict[str, Any] = {**LATENT, "relabel": "anchor", "alpha": 0.5}


@dataclass(frozen=True, kw_only=True)
class Relabeling(GradientMethod):
    """L = mean |f(x_f) - f_0(x_f under another label)|^2 + alpha * L(D_r); for classifiers the other label itself."""

    needs_original: ClassVar[bool] = True
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        "classifier": {**CLASSIFIER, "learning_rate": 0.013, "epochs": 10.0, "batch_size": 256},
        "stable_diffusion": CLASS_RECIPE,
        "sdxl": CLASS_RECIPE,
        "sd3": CLASS_RECIPE,
        "flux": {**CLASS_RECIPE, **DISTILLED},
    }

    alpha: Annotated[
        float, "weight of the retain loss; both are means, so the official 1e-3 on a sum is 3.07 at 32 x 32 x 3"
    ] = 1.0
    relabel: Annotated[
        str,
        "the other label: random (a new retained class each time), next, anchor (of a prompt), or a class; of single "
        "samples, any class but their own",
    ] = "random"
    teacher: Annotated[Literal["original", "current"], "whose answer under the other label is the target"] = "original"
    retain_reduction: Annotated[Literal["mean", "sum"], "sum: the retain loss is summed over pixels (official)"] = (
        "mean"
    )
    forget_condition_drop: Annotated[bool, "drop labels in the forget pass too (official)"] = False
    clip_before_mask: Annotated[bool, "take the gradient's norm before the mask (official)"] = False

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """One forward of the teacher without graph, one joint forward for forget and retain."""
        part, parts = draws.step.part, draws.step.parts
        forget = model.examples(draws.forget, draws.generator, condition_drop=self.forget_condition_drop)
        anchor = self.anchor(model, task, draws)
        retain = model.examples(draws.retain, draws.generator, condition_drop=True).part(part, parts)
        forget, anchor = forget.part(part, parts), Batch(*(value[part::parts] for value in anchor))
        teacher = frozen if self.teacher == "original" else model
        forget, retain = model.relabeled(forget, anchor, teacher), self.kept(retain, frozen)
        errors = model.per_sample_loss(Examples.joined(forget, retain))
        forget_loss, retain_loss = errors[: len(forget.weight)].mean(), errors[len(forget.weight) :].mean()
        scale = float(retain.target[0].numel()) if self.retain_reduction == "sum" else 1.0
        return {"loss": forget_loss + self.alpha * scale * retain_loss, "forget": forget_loss, "retain": retain_loss}

    def kept(self, retain: Examples, frozen: Model) -> Examples:
        """The retain examples with the answers they are trained towards; here those of the data."""
        return retain

    def check(self, task: Task) -> None:
        """The other label is one that is kept."""
        super().check(task)
        other_labels(self.relabel, torch.tensor(task.forget, dtype=torch.int64), task, torch.Generator())

    def anchor(self, model: Model, task: Task, draws: StepBatches) -> Batch:
        """For each forget image, another label, and a retain image for networks that know no labels."""
        count = len(draws.forget.labels)
        images = draws.retain.images[torch.arange(count) % len(draws.retain.images)]
        labels = other_labels(self.relabel, draws.forget.labels, task, draws.generator)
        if self.forget_condition_drop:
            labels = model.with_dropped_condition(labels, draws.generator)
        return Batch(images, labels)


def other_labels(rule: str, labels: Tensor, task: Task, generator: torch.Generator, flag: str = "--relabel") -> Tensor:
    """For each of `labels` (b,), all to be forgotten, the label that `rule`, given with `flag`, puts in its place."""
    if task.samples:
        return _other_than_own(rule, labels, task, generator, flag)
    retain = torch.tensor(task.retain)
    if rule == "anchor":
        if not task.anchors:
            raise OptionError(f"{flag} anchor needs anchors: this task has classes, so give random, next or a class")
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
        how = "to be forgotten" if chosen in task.forget else "forgotten"
        raise OptionError(f"{flag} {rule} is itself {how}: give a class that is kept, random or next")
    return torch.full_like(labels, chosen)


def _other_than_own(rule: str, labels: Tensor, task: Task, generator: torch.Generator, flag: str) -> Tensor:
    """For single samples: another label than each one's own, uniform over the classes that are kept, or the next."""
    if rule not in ("random", "next"):
        raise OptionError(f"{flag} {rule} is for whole classes: single samples are of many, so give random or next")
    others = [[c for c in task.retain if c != own] for own in range(len(task.class_names))]
    if not all(others):
        raise OptionError("relabelling needs a second class that is kept, this data has one")
    if rule == "next":
        following = [next((c for c in group if c > own), group[0]) for own, group in enumerate(others)]
        return torch.tensor(following)[labels]
    sizes = torch.tensor([len(group) for group in others])[labels]
    table = torch.tensor([group + group[:1] * (len(task.retain) - len(group)) for group in others])
    place = (torch.rand(labels.shape, generator=generator, dtype=torch.float64) * sizes).long()
    return table[labels, place]
