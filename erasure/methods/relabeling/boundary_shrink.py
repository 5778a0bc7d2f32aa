"""boundary_shrink: teach each forget sample the class that lies nearest beyond its own (Chen et al., 2023).

L = cross-entropy of f(x_f) with argmax f_0(x'), x' = x_f + 0.1 sign(dL(f_0(x_f), y) / dx), one FGSM step on the
original with pixels in [0, 1]; https://arxiv.org/abs/2303.11570, section 3.3. A sample whose nearest class is its own
teaches nothing and counts as zero. Ten epochs of the forget set; the learning rate is searched in 1e-6 to 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Batch
from erasure.data.task import Task
from erasure.methods.base import CLASSIFIER, GradientMethod, Job, StepBatches
from erasure.models import Model
from erasure.models.classifier import Classifier
from erasure.training.loop import TrainingResult


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(GradientMethod):
    """Relabelling by the nearest wrong class of the original."""

    needs_original: ClassVar[bool] = True
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        "classifier": {**CLASSIFIER, "learning_rate": 1e-5, "epochs": 10.0, "epochs_of": "forget", "batch_size": 256}
    }

    bound: Annotated[float, "length of the FGSM step, for pixels in [0, 1]"] = 0.1

    def check(self, task: Task) -> None:
        """Also: a step of some length, and an original with a network of its own."""
        super().check(task)
        if not self.bound > 0:
            raise OptionError(f"--bound {self.bound} must be above 0")
        if self.share_teacher:
            raise OptionError("--share-teacher: boundary_shrink differentiates the original, so it must be a copy")

    def check_model(self, model: Model) -> None:
        """It is a classifier of one answer an image."""
        super().check_model(model)
        if not isinstance(model, Classifier) or model.aspects:
            raise NotApplicableError(
                f"boundary_shrink moves an image to the nearest other class, and a {model.family} model does not give "
                "one class an image: use random_label or salun"
            )

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Minimise the loss against an original that is a copy, with --memory low too."""
        return super(BoundaryShrink, replace(self, share_teacher=self.share_teacher or False)).erase(model, job)

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """Cross-entropy with the nearest wrong class, a mean in which samples without one are zero."""
        part, parts = draws.step.part, draws.step.parts
        batch = Batch(*(value[part::parts] for value in draws.forget))
        nearest = self.nearest(frozen, batch, draws.generator)
        examples = model.examples(batch, draws.generator)
        wrong = nearest != examples.target
        loss = model.per_sample_loss(examples._replace(target=nearest, weight=examples.weight * wrong)).mean()
        return {"loss": loss, "wrong": wrong.float().mean()}

    def nearest(self, original: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The class (b,) that `original` sees one step of its own loss away."""
        images = batch.images.to(original.device).clone().requires_grad_(True)
        loss = original.per_sample_loss(original.examples(Batch(images, batch.labels), generator)).sum()
        (slope,) = torch.autograd.grad(loss, images)
        moved = (images.detach() + 2 * self.bound * slope.sign()).clamp(-1, 1)  # our pixels span 2
        with torch.no_grad():
            return original.prediction(original.examples(Batch(moved, batch.labels), generator).inputs).argmax(1)
