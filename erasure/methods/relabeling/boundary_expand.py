"""boundary_expand: give the forget samples a class of their own, then drop it (Chen et al., 2023).

The last layer gets one more row, class C + 1, with new random weights; L = cross-entropy of f(x_f) with C + 1; then
that row goes, and what is left of the network is the result. https://arxiv.org/abs/2303.11570, section 3.4. Ten epochs
of the forget set; the learning rate is searched in 1e-6 to 1e-4. A mask holds what it holds; the new row is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from erasure.core.errors import NotApplicableError
from erasure.core.rng import derive_seed
from erasure.data.task import Task
from erasure.methods.base import CLASSIFIER, GradientMethod, Job, StepBatches
from erasure.models import Model
from erasure.models.classifier import Classifier
from erasure.saliency.mask import Mask
from erasure.training.loop import TrainingResult


@dataclass(frozen=True, kw_only=True)
class BoundaryExpand(GradientMethod):
    """Training the forget set into a class that is dropped."""

    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        "classifier": {**CLASSIFIER, "learning_rate": 1e-5, "epochs": 10.0, "epochs_of": "forget", "batch_size": 256}
    }

    def check_model(self, model: Model) -> None:
        """It is a classifier of one answer an image."""
        super().check_model(model)
        if not isinstance(model, Classifier) or model.aspects:
            raise NotApplicableError(
                f"boundary_expand adds a class to the last layer of a classifier, and a {model.family} model does not "
                "give one class an image: use random_label or salun"
            )

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Minimise the loss with one row more; the network ends with the layers it had."""
        self.check_model(model)
        assert isinstance(model, Classifier)
        name = next(name for name, module in model.network.named_modules() if module is model.head)
        with one_row_more(model.network, name, derive_seed(job.seed, "row")):
            return super().erase(model, replace(job, mask=_widened(job.mask, name)))

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """Cross-entropy of forget samples with the class that was added."""
        examples = model.examples(draws.forget, draws.generator).part(draws.step.part, draws.step.parts)
        target = torch.full_like(examples.target, len(model.class_names))
        loss = model.per_sample_loss(examples._replace(target=target)).mean()
        return {"loss": loss}


@contextmanager
def one_row_more(network: nn.Module, name: str, seed: int) -> Iterator[None]:
    """The linear layer `name` with a random row at its end; when the block is left it has lost that row alone."""
    parent, _, own = name.rpartition(".")
    module = network.get_submodule(parent)
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = nn.Linear(layer.in_features, layer.out_features + 1, bias=layer.bias is not None)
    wide.to(layer.weight)
    pairs = list(zip(wide.parameters(), layer.parameters(), strict=True))
    with torch.no_grad():
        for new, old in pairs:
            new[:-1] = old
    setattr(module, own, wide)
    try:
        yield
    finally:
        with torch.no_grad():
            for new, old in pairs:
                old.copy_(new[:-1])
        setattr(module, own, layer)


def _widened(mask: Mask | None, name: str) -> Mask | None:
    """`mask` for the network with the row, which is free."""
    if mask is None:
        return None
    tensors = dict(mask.tensors)
    for own in (f"{name}.weight", f"{name}.bias"):
        if own in tensors:
            tensors[own] = torch.cat([tensors[own], torch.ones_like(tensors[own][:1])])
    return Mask(tensors, mask.provenance)
