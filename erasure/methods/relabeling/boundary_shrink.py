"""boundary_shrink: relabel each forget sample as the nearest other class of the original (Chen et al., 2023).

L = cross-entropy of f(x_f) with argmax f_0(x'), x' = x_f + 0.1 sign(dL(f_0(x_f), y) / dx), one FGSM step on the
original with pixels in [0, 1]; https://arxiv.org/abs/2303.11570, section 3.3. A sample whose nearest class is its own
has loss zero. Ten epochs of the forget set; the learning rate is searched in 1e-6 to 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Batch
from erasure.data.task import Task
from erasure.methods.base import CLASSIFIER, GradientMethod, Options, StepBatches
from erasure.models import Model
from erasure.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(GradientMethod):
    """Relabelling by the nearest wrong class of the original."""

    needs_original: ClassVar[bool] = True
    differentiates_original: ClassVar[bool] = True
    defaults_of: ClassVar[Mapping[str, Options]] = {
        "classifier": {**CLASSIFIER, "learning_rate": 1e-5, "epochs": 10.0, "epochs_of": "forget", "batch_size": 256}
    }

    bound: Annotated[float, "length of the FGSM step, for pixels in [0, 1]"] = 0.1

    def check(self, task: Task) -> None:
        """Also raise OptionError for a step without length, and for --share-teacher."""
        super().check(task)
        if not self.bound > 0:
            raise OptionError(f"--bound {self.bound} must be above 0")
        if self.share_teacher:
            raise OptionError("--share-teacher: boundary_shrink needs a full copy of the original: leave it out")

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for anything but a classifier that gives each image one class."""
        super().check_model(model)
        if not isinstance(model, Classifier) or model.aspects:
            raise NotApplicableError(
                f"boundary_shrink moves an image to the nearest other class, and a {model.family} model does not give "
                "one class an image: use random_label or salun"
            )

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the cross-entropy with the nearest wrong class, a mean in which samples without one are zero."""
        batch = batches.own(batches.forget_batch)
        nearest = self.nearest(original, batch, batches.generator)
        examples = model.examples(batch, batches.generator)
        wrong = nearest != examples.target
        loss = model.per_sample_loss(examples._replace(target=nearest, weight=examples.weight * wrong)).mean()
        return {"loss": loss, "wrong": wrong.float().mean()}

    def nearest(self, original: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The class (b,) that `original` predicts after one FGSM step along its own loss."""
        images = batch.images.to(original.device).clone().requires_grad_(True)
        loss = original.per_sample_loss(original.examples(Batch(images, batch.labels), generator)).sum()
        (gradient,) = torch.autograd.grad(loss, images)
        perturbed = (images.detach() + 2 * self.bound * gradient.sign()).clamp(-1, 1)  # pixels in [-1, 1] span 2
        with torch.no_grad():
            return original.prediction(original.examples(Batch(perturbed, batch.labels), generator).inputs).argmax(1)
