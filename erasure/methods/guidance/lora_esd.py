"""lora_esd: ESD's loss on low-rank factors of attention layers, known as LECO (after Gandikota et al., 2023).

The loss of esd (https://arxiv.org/abs/2303.07345, eq. 7 and 8) trains factors of rank 4 beside the projections of every
attention layer (queries, keys, values and outputs), with the community's defaults: AdamW, 1e-4, 500 steps, alpha 1,
that is products scaled by alpha / rank. At the end the products are added to the weights;
`erasure export RUN --format lora --rank 4` writes them as a file of factors, exactly, as the difference has this rank.
The original is the network without its factors, so no second network is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn

from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.rng import derive_seed
from erasure.data.task import Task
from erasure.methods.base import Job, TrainingSetup
from erasure.methods.guidance.base import NegativeGuidance
from erasure.models import Model
from erasure.training.lora_layers import is_factor, low_rank
from erasure.training.optimizers import Optimizer

# Of UNets, and what text has besides where image and text share an attention.
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
ENDINGS = tuple(f".{name}" for name in PROJECTIONS)


@dataclass(frozen=True, kw_only=True)
class LoraESD(NegativeGuidance):
    """Negative guidance trained into low-rank factors."""

    no_mask: ClassVar[str] = "it trains low-rank factors beside the weights, which a mask does not cover"

    rank: Annotated[int, "rank of the factors of each layer"] = 4
    alpha: Annotated[float, "the products are scaled by alpha / rank"] = 1.0
    steps: Annotated[int, "optimiser steps"] = 500
    learning_rate: Annotated[float, "learning rate"] = 1e-4
    optimizer: Annotated[Optimizer, "optimiser"] = "adamw"
    weight_decay: Annotated[float, "weight decay (of the factors)"] = 0.01
    share_teacher: Annotated[bool | None, "the original is the network with its initial factors (product zero)"] = True

    def check(self, task: Task) -> None:
        """Also raise OptionError for a rank or alpha outside its range."""
        super().check(task)
        if self.rank < 1 or not 0 < self.alpha < float("inf"):
            raise OptionError("--rank must be at least 1, --alpha above 0")

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a model without guidance, or without the attention that --weights names."""
        self.check_guided(model)
        if self.weights != "all" and model.joint_attention:
            raise NotApplicableError(
                f"--weights {self.weights}: image and text share every attention layer of a {model.family} network: "
                "leave --weights out"
            )
        if not self.layers(model.network):
            raise NotApplicableError(f"this network has no attention layer for the factors (--weights {self.weights})")

    def layers(self, network: nn.Module) -> Sequence[str]:
        """The linear layers that get factors, by name."""
        return [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(ENDINGS) and self.in_weights(name)
        ]

    def trains(self, name: str) -> bool:
        """Whether it is a factor."""
        return is_factor(name)

    @contextmanager
    def prepared(self, model: Model, job: Job) -> Iterator[TrainingSetup]:
        """Add the factors while the loop runs; afterwards their products are in the weights."""
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "low rank"))
        with low_rank(model.network, self.layers(model.network), self.rank, self.alpha / self.rank, generator):
            yield TrainingSetup(job)
