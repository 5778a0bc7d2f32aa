"""sisa: sharded, isolated, sliced, aggregated training (Bourtoule et al., 2021).

S classifiers, each on a shard of its own, trained slice after slice. A request costs (1/S)(2/3 + 1/(3R)) of a whole
retraining on average, for a sample drawn uniformly. The shard and slice of a sample depend on its id alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.core.rng import derive_seed
from erasure.data import Batch, Dataset
from erasure.exact.base import DataInfo, ExactMethod, Learner
from erasure.models.classifier import Classifier
from erasure.models.info import ModelInfo


class _Shard(Learner):
    def __init__(self, model: Classifier) -> None:
        self.model, self.network = model, model.network

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.model.loss(batch, generator)

    def scores(self, images: Tensor) -> Tensor:
        return self.model.describe(images)[0].softmax(1)


@dataclass(frozen=True)
class Sisa(ExactMethod):
    """Shards of samples, a classifier on each."""

    kind = "shard"

    shards: Annotated[int, "shards, a classifier on each"] = 5
    arch: Annotated[str, "architecture, as for `erasure train classifier`"] = "resnet18"
    aggregate: Annotated[Literal["mean", "vote"], "the shards' mean probability, or the majority of them"] = "mean"

    def check(self, dataset: Dataset) -> None:
        """Also check the number of shards, and that the architecture exists and accepts these images."""
        super().check(dataset)
        if self.shards < 1:
            raise OptionError(f"--shards {self.shards} must be at least 1")
        self.learner(DataInfo.of(dataset), 0)

    def num_units(self, num_classes: int) -> int:
        """One a shard."""
        return self.shards

    def unit_of(self, sample: int, label: int, seed: int) -> int:
        """By the hash of the id."""
        return derive_seed(seed, "shard", sample) % self.shards

    def learner(self, info: DataInfo, seed: int) -> Learner:
        """A classifier over all classes."""
        return _Shard(Classifier.new(self.arch, cast(ModelInfo, info.to_dict()), seed))

    def combined(self, units: Sequence[int], scores: Sequence[Tensor], num_classes: int) -> Tensor:
        """Mean probability, or share of the votes; of equal shares the first class wins."""
        if self.aggregate == "vote":
            scores = [torch.nn.functional.one_hot(part.argmax(1), num_classes).float() for part in scores]
        return torch.stack(list(scores)).mean(0)
