"""Method: hyper-parameters with the paper's defaults, and one loss; the rest is inherited.

A method's fields are its command-line flags. `defaults_of` gives the values that differ for a family, `presets` the
named sets of values. Both are plain data, so that what ran is always in run.json.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from erasure.core.distributed import is_main
from erasure.core.errors import NotApplicableError
from erasure.core.logging import log_user
from erasure.core.rng import derive_seed
from erasure.data import Batch, Batches, Dataset
from erasure.data.task import Task
from erasure.models import Model
from erasure.models.base import recomputed_activations
from erasure.saliency.mask import Mask
from erasure.training.loop import Optimizer, Step, TrainingConfig, TrainingResult, minimize
from erasure.training.memory import count, described, estimate
from erasure.training.shared_teacher import shared_teacher

WORTH_TELLING = 50_000_000  # weights; below that a training fits anywhere
KINDS = {
    "attn1": "self-attention (attn1)",
    "attn2": "cross-attention",
    "not-attn2": "tensor outside cross-attention",
}


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
    original: Model | None = None  # a frozen copy of the model before the erasure, where one is held anyway


# What every recipe for Stable Diffusion shares: passes over the forget images in small batches (Fan et al., 2024).
LATENT: dict[str, Any] = {
    "batch_size": 8,
    "learning_rate": 1e-5,
    "epochs": 5.0,
    "epochs_of": "forget",
    "clip_norm": 0.0,
    "checkpoint_every": 10,
    "saliency": {"guidance_scale": 8.5, "saliency_batch_size": 8},
}
# And every recipe for classifiers (Fan et al., 2024).
CLASSIFIER: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 5e-4, "clip_norm": 0.0}
# The same as LATENT for FLUX, whose network is told a guidance scale and draws with this one.
DISTILLED: dict[str, Any] = {**LATENT, "saliency": {"guidance_scale": 3.5, "saliency_batch_size": 8}}
# What methods share that train on, on the retain set.
RETAINING: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("stable_diffusion", "sdxl", "sd3"), LATENT),
    "flux": DISTILLED,
    "classifier": {**CLASSIFIER, "learning_rate": 0.01, "epochs": 10.0},
}


class StepBatches:
    """The batches of one step, read when asked for; `own` is what the method's `running` made, None for most."""

    def __init__(self, step: Step, forget: Batches, retain: Batches, own: Any = None) -> None:
        self.step, self._forget, self._retain, self.own = step, forget, retain, own

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

    def asked(self, task: Task, count: int) -> Tensor:
        """Labels (count,) of what is to be forgotten, each drawn evenly, for methods that need no images of it."""
        return torch.tensor(task.forget)[torch.randint(0, len(task.forget), (count,), generator=self.generator)]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """What every method is: `erase` moves the model's weights in place."""

    default_mask: ClassVar[str] = "none"
    moves: ClassVar[Literal["network", "text encoder", "nothing"]] = "network"
    no_mask: ClassVar[str] = ""  # why a mask has no meaning for it, where it has none
    reads: ClassVar[tuple[str, ...]] = ("forget", "retain")  # the other data set of its job is empty, and never drawn
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {}

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Note which fields were given: the others may still follow the family, the model's card or a preset."""
        method = super().__new__(cls)
        object.__setattr__(method, "_given", given)
        return method

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were given when it was made, and no defaults."""
        return dict(getattr(self, "_given", {}))

    @abstractmethod
    def check(self, task: Task) -> None:
        """Raise OptionError for options that make no sense, before anything is written."""

    @abstractmethod
    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a model that the method can do nothing with."""

    def part_of(self, model: Model) -> Model:
        """What of `model` it moves, as a model whose `network` that is: masks and counts of changes are about it."""
        return model

    @abstractmethod
    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Change `model.network` so that it forgets `job.forget` and keeps `job.retain`."""


@dataclass(frozen=True, kw_only=True)
class GradientMethod(Method):
    """A method that is one loss for the one loop of optimise.py."""

    needs_original: ClassVar[bool] = False

    steps: Annotated[int, "optimiser steps"] = 1000
    epochs: Annotated[float, "passes over the data in place of --steps; 0: use --steps"] = 0.0
    epochs_of: Annotated[Literal["both", "forget"], "which data a pass counts: forget and retain, or forget alone"] = (
        "both"
    )
    batch_size: Annotated[int, "forget images a step, and as many retain images"] = 128
    learning_rate: Annotated[float, "step size"] = 1e-4
    optimizer: Annotated[Optimizer, "optimiser"] = "adam"
    weight_decay: Annotated[float, "weight decay (of the weights that may move)"] = 0.0
    momentum: Annotated[float, "momentum of sgd"] = 0.9
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for none"] = 1.0
    freeze_statistics: Annotated[bool, "hold batch-norm statistics, which are no weights and no mask holds"] = False
    weights: Annotated[
        Literal["all", "attn1", "attn2", "not-attn2"], "which tensors may move; attn2 is cross-attention"
    ] = "all"
    memory: Annotated[Literal["normal", "low"], "low: the options below that save memory, where they are not given"] = (
        "normal"
    )
    precision: Annotated[
        Literal["auto", "float32", "bf16"],
        "number format of the forward pass; weights stay float32; auto: bf16 with --memory low, else float32",
    ] = "auto"
    gradient_checkpointing: Annotated[bool | None, "recompute activations, where the network can"] = None
    share_teacher: Annotated[bool | None, "keep only the original values that may change, and swap them in"] = None
    lean_optimizer: Annotated[bool | None, "same steps without a second copy of the free weights"] = None
    accumulate: Annotated[int, "parts that each batch is computed in, to save memory"] = 1
    compile: Annotated[bool, "compile the network with torch.compile"] = False
    checkpoint_every: Annotated[int, "steps between checkpoints, from which a killed run continues"] = 50

    @abstractmethod
    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """Named scalars of one step; `loss` is minimised. `frozen` is the original if `needs_original`."""

    @contextmanager
    def running(self, model: Model, job: Job) -> Iterator[Any]:
        """What `loss` finds as `draws.own` until the loop is done; made before the first step, from the original."""
        yield None

    def trains(self, name: str) -> bool:
        """Whether the tensor `name` of the network may move."""
        if self.weights == "all":
            return True
        parts = name.split(".")
        return "attn2" not in parts if self.weights == "not-attn2" else self.weights in parts

    def check(self, task: Task) -> None:
        """Steps, batch size and the like are in range."""
        self.loop(0).check(self.batch_size)

    def check_model(self, model: Model) -> None:
        """Its network has tensors that --weights names."""
        if self.weights != "all" and model.joint_attention:
            raise NotApplicableError(
                f"--weights {self.weights}: image and text share every attention of a {model.family} network, none is "
                "cross-attention: leave it out"
            )
        if self.weights != "all" and not any(self.trains(name) for name, _ in model.network.named_parameters()):
            raise NotApplicableError(f"--weights {self.weights}: this network has no {KINDS[self.weights]}")

    def loop(self, num_images: int) -> TrainingConfig:
        """Settings of the loop; `num_images`, those that an epoch counts, turn epochs into steps."""
        values = {key: value for key, value in asdict(self).items() if key in TrainingConfig.__annotations__}
        if self.epochs:
            values["steps"] = max(1, round(self.epochs * num_images / max(1, self.batch_size)))
        values["lean_optimizer"] = self._saves(self.lean_optimizer)
        if self.precision == "auto":
            values["precision"] = "bf16" if self.memory == "low" else "float32"
        return TrainingConfig(**values)

    def loop_of(self, job: Job) -> TrainingConfig:
        """Settings of the loop on the data of `job`."""
        return self.loop(len(job.forget) + (len(job.retain) if self.epochs_of == "both" else 0))

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Minimise the method's loss from the original weights; the seconds count what `running` makes too."""
        self.check(job.task)
        self.check_model(model)
        began = time.perf_counter()
        with self.running(model, job) as own:
            seconds = time.perf_counter() - began
            outcome = self._minimised(model, job, own)
        return replace(outcome, seconds=outcome.seconds + seconds)

    def _minimised(self, model: Model, job: Job, own: Any) -> TrainingResult:
        """What the loop leaves, with `own` in all that `loss` draws."""
        forget = Batches(job.forget, self.batch_size, derive_seed(job.seed, "forget"))
        retain = Batches(job.retain, self.batch_size, derive_seed(job.seed, "retain"))
        loop = self.loop_of(job)
        frozen, teacher_bytes = self._original(model, job.mask, job.original)
        self._tell_memory(model.network, job.mask, loop, teacher_bytes)
        model.network.train()
        if self.freeze_statistics:
            freeze_batch_norm(model.network)

        def loss(step: Step) -> dict[str, Tensor]:
            return self.loss(model, frozen, job.task, StepBatches(step, forget, retain, own))

        try:
            with recomputed_activations(model.network, self.gradient_checkpointing, self.memory == "low"):
                return minimize(
                    model.network,
                    loss,
                    loop,
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

    def _saves(self, option: bool | None) -> bool:
        """What an option that saves memory is set to; not given, it follows --memory."""
        return self.memory == "low" if option is None else option

    def _original(self, model: Model, mask: Mask | None, copy: Model | None = None) -> tuple[Model, int]:
        """The original as `loss` wants it, and the bytes it holds on top of the model."""
        if not self.needs_original:
            return model, 0
        if self._saves(self.share_teacher):
            twin, teacher = shared_teacher(model, mask, self.trains)
            return twin, teacher.nbytes
        twin = copy if copy is not None and copy.device == model.device else model.frozen()
        return twin, sum(tensor.nbytes for tensor in twin.network.state_dict().values())

    def _tell_memory(
        self, network: torch.nn.Module, mask: Mask | None, loop: TrainingConfig, teacher_bytes: int
    ) -> None:
        num_weights = sum(parameter.numel() for parameter in network.parameters())
        if not is_main() or (self.memory == "normal" and num_weights <= WORTH_TELLING):
            return
        parts = estimate(
            *count(network, mask, self.trains),
            optimizer=loop.optimizer,
            momentum=loop.momentum,
            lean=loop.lean_optimizer,
            in_backward=loop.in_backward,
            dense_gradients=loop.clip_before_mask,
            teacher_bytes=teacher_bytes,
        )
        log_user(described(parts))


def freeze_batch_norm(network: torch.nn.Module) -> None:
    """Put every batch-norm layer in evaluation mode, so that its running statistics stay."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
