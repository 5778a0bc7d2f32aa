"""boundary_expand: give the forget samples a class of their own, then drop it (Chen et al., 2023).

The last layer gets one more row, class C + 1, with new random weights; L = cross-entropy of f(x_f) with C + 1; then
that row is removed, and the rest of the network is the result. https://arxiv.org/abs/2303.11570, section 3.4. Ten
epochs of the forget set; the learning rate is searched in 1e-6 to 1e-4. With a mask the new row is trainable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from erasure.core.errors import NotApplicableError
from erasure.core.rng import derive_seed
from erasure.data.task import Task
from erasure.methods.base import CLASSIFIER, GradientMethod, Job, Options, StepBatches, TrainingSetup
from erasure.models import Model
from erasure.models.classifier import Classifier
from erasure.saliency.mask import Mask


@dataclass(frozen=True, kw_only=True)
class BoundaryExpand(GradientMethod):
    """Training the forget set into a class that is then removed."""

    defaults_of: ClassVar[Mapping[str, Options]] = {
        "classifier": {**CLASSIFIER, "learning_rate": 1e-5, "epochs": 10.0, "epochs_of": "forget", "batch_size": 256}
    }

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for anything but a classifier that gives each image one class."""
        super().check_model(model)
        if not isinstance(model, Classifier) or model.aspects:
            raise NotApplicableError(
                f"boundary_expand adds a class to the last layer of a classifier, and a {model.family} model does not "
                "give one class an image: use random_label or salun"
            )

    @contextmanager
    def prepared(self, model: Model, job: Job) -> Iterator[TrainingSetup]:
        """Add the row while the loop runs; afterwards the network has its own layers again."""
        assert isinstance(model, Classifier)
        name = next(name for name, module in model.network.named_modules() if module is model.head)
        with one_row_more(model.network, name, derive_seed(job.seed, "row")):
            yield TrainingSetup(replace(job, mask=_with_row(job.mask, name)))

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the cross-entropy of forget samples with the added class."""
        examples = batches.forget_examples(model)
        target = torch.full_like(examples.target, len(model.class_names))
        loss = model.per_sample_loss(examples._replace(target=target)).mean()
        return {"loss": loss}


@contextmanager
def one_row_more(network: nn.Module, name: str, seed: int) -> Iterator[None]:
    """Give the linear layer `name` a random last row; when the block is left, the row alone is removed."""
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


def _with_row(mask: Mask | None, name: str) -> Mask | None:
    """`mask` for the network with the added row, which is trainable."""
    if mask is None:
        return None
    tensors = dict(mask.tensors)
    for own in (f"{name}.weight", f"{name}.bias"):
        if own in tensors:
            tensors[own] = torch.cat([tensors[own], torch.ones_like(tensors[own][:1])])
    return Mask(tensors, mask.provenance)
