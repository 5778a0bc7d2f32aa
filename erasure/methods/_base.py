"""Method: hyper-parameters with the paper's defaults, and one loss; the rest is inherited.

A method's fields are its command-line flags. `defaults_of` gives the values that differ for a family, `presets` the
named sets of values. Both are plain data, so that what ran is always in run.json.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from erasure.data import Batch, Batches, Dataset
from erasure.mask import Mask
from erasure.models import Model
from erasure.optimise import LoopSettings, Optimizer, Outcome, Precision, Step, optimise
from erasure.seeds import derive
from erasure.task import Task


@dataclass(frozen=True)
class Job:
    """Everything an erasure is about but the model: the task, its data, the mask, the seed and the run's folder."""

    task: Task
    forget: Dataset
    retain: Dataset
    mask: Mask | None = None
    seed: int = 0
    folder: Path | None = None
    fingerprint: str = ""
    on_step: Callable[[int], Mapping[str, Any]] | None = None


class Draws:
    """The batches of one step, read when asked for."""

    def __init__(self, step: Step, forget: Batches, retain: Batches) -> None:
        self.step, self._forget, self._retain = step, forget, retain

    @property
    def generator(self) -> torch.Generator:
        """The step's source of chance, on the CPU."""
        return self.step.generator

    @cached_property
    def forget(self) -> Batch:
        """The whole batch of forget images; take `step.part` of the examples made from it."""
        return self._forget.at(self.step.index)

    @cached_property
    def retain(self) -> Batch:
        """The whole batch of retain images."""
        return self._retain.at(self.step.index)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """What every method is: `erase` moves the model's weights in place."""

    default_mask: ClassVar[str] = "none"
    takes_mask: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {}

    @abstractmethod
    def check(self, task: Task) -> None:
        """Raise OptionError for options that make no sense, before anything is written."""

    @abstractmethod
    def erase(self, model: Model, job: Job) -> Outcome:
        """Change `model.network` so that it forgets `job.forget` and keeps `job.retain`."""


@dataclass(frozen=True, kw_only=True)
class GradientMethod(Method):
    """A method that is one loss for the one loop of optimise.py."""

    needs_original: ClassVar[bool] = False

    steps: Annotated[int, "optimiser steps"] = 1000
    epochs: Annotated[float, "passes over forget and retain data in place of --steps; 0: use --steps"] = 0.0
    batch_size: Annotated[int, "forget images a step, and as many retain images"] = 128
    learning_rate: Annotated[float, "step size"] = 1e-4
    optimizer: Annotated[Optimizer, "optimiser"] = "adam"
    weight_decay: Annotated[float, "weight decay (of the weights that may move)"] = 0.0
    momentum: Annotated[float, "momentum of sgd"] = 0.9
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for none"] = 1.0
    freeze_statistics: Annotated[bool, "hold batch-norm statistics, which are no weights and no mask holds"] = False
    precision: Annotated[Precision, "number format of the forward pass; weights stay float32"] = "float32"
    accumulate: Annotated[int, "parts that each batch is computed in, to save memory"] = 1
    compile: Annotated[bool, "compile the network with torch.compile"] = False
    checkpoint_every: Annotated[int, "steps between checkpoints, from which a killed run continues"] = 50

    @abstractmethod
    def loss(self, model: Model, frozen: Model, task: Task, draws: Draws) -> dict[str, Tensor]:
        """Named scalars of one step; `loss` is minimised. `frozen` is the original if `needs_original`."""

    def trains(self, name: str) -> bool:
        """Whether the tensor `name` of the network may move."""
        return True

    def check(self, task: Task) -> None:
        """Steps, batch size and the like are in range."""
        self.loop(0).check(self.batch_size)

    def loop(self, num_images: int) -> LoopSettings:
        """Settings of the loop; `num_images` in the forget and retain sets together turn epochs into steps."""
        values = {key: value for key, value in asdict(self).items() if key in LoopSettings.__annotations__}
        if self.epochs:
            values["steps"] = round(self.epochs * num_images / max(1, self.batch_size))
        return LoopSettings(**values)

    def erase(self, model: Model, job: Job) -> Outcome:
        """Minimise the method's loss from the original weights."""
        self.check(job.task)
        forget = Batches(job.forget, self.batch_size, derive(job.seed, "forget"))
        retain = Batches(job.retain, self.batch_size, derive(job.seed, "retain"))
        frozen = model.frozen() if self.needs_original else model
        model.network.train()
        if self.freeze_statistics:
            hold_statistics(model.network)

        def loss(step: Step) -> dict[str, Tensor]:
            return self.loss(model, frozen, job.task, Draws(step, forget, retain))

        try:
            return optimise(
                model.network,
                loss,
                self.loop(len(job.forget) + len(job.retain)),
                seed=job.seed,
                mask=job.mask,
                trains=self.trains,
                folder=job.folder,
                fingerprint=job.fingerprint,
                description=type(self).__name__,
                on_step=job.on_step,
            )
        finally:
            model.network.eval()


def hold_statistics(network: torch.nn.Module) -> None:
    """Put every batch-norm layer in evaluation mode, so that its running statistics stay."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
