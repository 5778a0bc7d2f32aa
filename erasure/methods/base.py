"""Method: hyper-parameters with the paper's defaults, and one loss; everything else is inherited.

A method's fields are its command-line flags. `defaults_of` gives the values that differ for a family, `presets` the
named sets of values. Both are plain data, so that run.json records what ran.

A gradient method writes `loss`. Where it needs more, it overrides `prepared` (set-up and clean-up around the training
loop, what `loss` finds as `batches.state`, a projection after each step), `with_own_images` (images that the method
generates to train on), `images_per_epoch` or `trains`; it never calls the training loop itself.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
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
from erasure.models import Examples, Model
from erasure.models.base import recomputed_activations
from erasure.saliency.mask import Mask
from erasure.training.loop import (
    Divisible,
    OnStep,
    Optimizer,
    Projection,
    Step,
    TrainingConfig,
    TrainingResult,
    minimize,
)
from erasure.training.memory import count, described, estimate
from erasure.training.shared_teacher import shared_teacher

LARGE = 50_000_000  # weights above which the memory estimate is logged without --memory low too
KINDS = {
    "attn1": "self-attention (attn1)",
    "attn2": "cross-attention",
    "not-attn2": "tensor outside cross-attention",
}
Options = Mapping[str, Any]  # values of options by field name; under "saliency" those of the mask


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
    on_step: OnStep | None = None
    original: Model | None = None  # a frozen copy of the model before the erasure, if there is one already


# What all recipes for Stable Diffusion share: epochs over the forget images in small batches (Fan et al., 2024).
STABLE_DIFFUSION: Options = {
    "batch_size": 8,
    "learning_rate": 1e-5,
    "epochs": 5.0,
    "epochs_of": "forget",
    "clip_norm": 0.0,
    "checkpoint_every": 10,
    "saliency": {"guidance_scale": 8.5, "saliency_batch_size": 8},
}
# The same for FLUX, whose network takes the guidance scale as an input and samples with this one.
FLUX: Options = {**STABLE_DIFFUSION, "saliency": {"guidance_scale": 3.5, "saliency_batch_size": 8}}
# What all recipes for classifiers share (Fan et al., 2024).
CLASSIFIER: Options = {"optimizer": "sgd", "weight_decay": 5e-4, "clip_norm": 0.0}
# The defaults by family of methods that fine-tune on the retain set.
FINETUNING: Mapping[str, Options] = {
    **dict.fromkeys(("stable_diffusion", "sdxl", "sd3"), STABLE_DIFFUSION),
    "flux": FLUX,
    "classifier": {**CLASSIFIER, "learning_rate": 0.01, "epochs": 10.0},
}


class StepBatches:
    """The batches of one step, and what this process computes of them.

    A batch is divided among processes and accumulation steps. Random numbers are drawn for the whole batch, so that
    every division sees the same ones: `forget_examples` and `retain_examples` draw for the whole batch and return our
    part of it; `own` takes our part of anything else that was made for the whole batch.
    """

    def __init__(self, step: Step, forget: Batches, retain: Batches, state: Any = None) -> None:
        """`state` is what the method's `prepared` made for its loss."""
        self.step, self._forget, self._retain, self.state = step, forget, retain, state

    @property
    def generator(self) -> torch.Generator:
        """The step's random generator, on the CPU."""
        return self.step.generator

    @cached_property
    def forget_batch(self) -> Batch:
        """The whole batch of forget images."""
        return self._forget.at(self.step.index)

    @cached_property
    def retain_batch(self) -> Batch:
        """The whole batch of retain images."""
        return self._retain.at(self.step.index)

    def own(self, values: Divisible) -> Divisible:
        """Our part of examples, images with labels, or a tensor (b, ...) of the whole batch."""
        return self.step.own(values)

    def forget_examples(self, model: Model, *, condition_drop: bool = False) -> Examples:
        """Our part of the forget batch as examples; `condition_drop` drops labels as the model's own training does."""
        return self.own(model.examples(self.forget_batch, self.generator, condition_drop=condition_drop))

    def retain_examples(self, model: Model) -> Examples:
        """Our part of the retain batch as examples of the model's own training, with dropped labels."""
        return self.own(model.examples(self.retain_batch, self.generator, condition_drop=True))

    def losses(self, model: Model, forget: Examples, retain: Examples) -> tuple[Tensor, Tensor]:
        """The mean loss of `forget` and the mean loss of `retain`, scalars from one joint forward pass."""
        losses = model.per_sample_loss(Examples.joined(forget, retain))
        return losses[: len(forget.weight)].mean(), losses[len(forget.weight) :].mean()

    def forget_labels(self, task: Task, count: int) -> Tensor:
        """Labels (count,) to forget, drawn uniformly, for methods that need no images of them."""
        return torch.tensor(task.forget)[torch.randint(0, len(task.forget), (count,), generator=self.generator)]


@dataclass(frozen=True)
class TrainingSetup:
    """What a method prepared: the job for the loop, `batches.state` for its loss, and a projection after each step."""

    job: Job
    state: Any = None
    project: Projection | None = None


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """What every method is: `erase` changes the model's weights in place."""

    default_mask: ClassVar[str] = "none"
    moves: ClassVar[Literal["network", "text encoder", "nothing"]] = "network"
    no_mask: ClassVar[str] = ""  # why the method takes no mask; empty: it takes one
    reads: ClassVar[tuple[str, ...]] = ("forget", "retain")  # data sets of its job that it reads; others are empty
    presets: ClassVar[Mapping[str, Options]] = {}
    defaults_of: ClassVar[Mapping[str, Options]] = {}

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
        """Raise OptionError for options that are invalid or do not fit the task, before anything is written."""

    @abstractmethod
    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a model that the method cannot erase from."""

    def part_of(self, model: Model) -> Model:
        """The part of `model` that the method changes, as a model with that `network`; masks belong to this network."""
        return model

    @abstractmethod
    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Change `model.network` so that it forgets `job.forget` and keeps `job.retain`."""


@dataclass(frozen=True, kw_only=True)
class GradientMethod(Method):
    """A method that is one loss, minimised by the training loop (training/loop.py)."""

    needs_original: ClassVar[bool] = False
    differentiates_original: ClassVar[bool] = False  # then the original must be a full copy

    steps: Annotated[int, "optimiser steps"] = 1000
    epochs: Annotated[float, "passes over the data in place of --steps; 0: use --steps"] = 0.0
    epochs_of: Annotated[Literal["both", "forget"], "data that an epoch counts: forget and retain, or forget alone"] = (
        "both"
    )
    batch_size: Annotated[int, "forget images per step, and as many retain images"] = 128
    learning_rate: Annotated[float, "learning rate"] = 1e-4
    optimizer: Annotated[Optimizer, "optimiser"] = "adam"
    weight_decay: Annotated[float, "weight decay (of trainable weights)"] = 0.0
    momentum: Annotated[float, "momentum of sgd"] = 0.9
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for none"] = 1.0
    freeze_statistics: Annotated[bool, "freeze batch-norm statistics, which are not weights: no mask freezes them"] = (
        False
    )
    weights: Annotated[
        Literal["all", "attn1", "attn2", "not-attn2"], "which tensors are trained; attn2 is cross-attention"
    ] = "all"
    memory: Annotated[Literal["normal", "low"], "low: turn on the memory options below that are not given"] = "normal"
    precision: Annotated[
        Literal["auto", "float32", "bf16"],
        "number format of the forward pass; weights stay float32; auto: bf16 with --memory low, else float32",
    ] = "auto"
    gradient_checkpointing: Annotated[bool | None, "recompute activations, where the network can"] = None
    share_teacher: Annotated[bool | None, "keep only the original values of trainable weights, and swap them in"] = None
    lean_optimizer: Annotated[bool | None, "same steps without a second copy of the trainable weights"] = None
    accumulate: Annotated[int, "parts that each batch is computed in, to save memory"] = 1
    compile: Annotated[bool, "compile the network with torch.compile"] = False
    checkpoint_every: Annotated[int, "steps between checkpoints, from which a killed run continues"] = 50

    @abstractmethod
    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return named scalars of one step, of which `loss` is minimised and the others are recorded.

        Args:
            model: The model in training.
            original: The frozen original if the method `needs_original`, else `model` itself.
            task: What to forget and what to keep, by label.
            batches: The step's batches, its random generator, and our part of both.
        """

    @contextmanager
    def prepared(self, model: Model, job: Job) -> Iterator[TrainingSetup]:
        """Set up what the loop needs and clean up after it; the seconds of the set-up count as the method's.

        Entered before the first step, while `model` (the part that the method changes) still is the original.
        """
        yield TrainingSetup(job)

    def with_own_images(self, model: Model, job: Job) -> Job:
        """The job with the images that the method trains on in place of the task's; their seconds do not count."""
        return job

    def images_per_epoch(self, job: Job) -> int:
        """How many images one epoch of `job` has."""
        return len(job.forget) + (len(job.retain) if self.epochs_of == "both" else 0)

    def in_weights(self, name: str) -> bool:
        """Whether --weights names the tensor `name` of the network."""
        if self.weights == "all":
            return True
        parts = name.split(".")
        return "attn2" not in parts if self.weights == "not-attn2" else self.weights in parts

    def trains(self, name: str) -> bool:
        """Whether the tensor `name` of the network is trained."""
        return self.in_weights(name)

    def check(self, task: Task) -> None:
        """Raise OptionError for steps, a batch size or another training option outside its range."""
        self.training_config().check(self.batch_size)

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a network without the tensors that --weights names."""
        if self.weights != "all" and model.joint_attention:
            raise NotApplicableError(
                f"--weights {self.weights}: image and text share every attention layer of a {model.family} network, so "
                "it has no cross-attention: leave --weights out"
            )
        if self.weights != "all" and not any(self.trains(name) for name, _ in model.network.named_parameters()):
            raise NotApplicableError(f"--weights {self.weights}: this network has no {KINDS[self.weights]}")

    def training_config(self, num_images: int = 0) -> TrainingConfig:
        """The loop's settings; with `epochs`, steps follow from `num_images`, the images of an epoch."""
        values = {key: value for key, value in asdict(self).items() if key in TrainingConfig.__annotations__}
        if self.epochs:
            values["steps"] = max(1, round(self.epochs * num_images / max(1, self.batch_size)))
        values["lean_optimizer"] = self._saves_memory(self.lean_optimizer)
        if self.precision == "auto":
            values["precision"] = "bf16" if self.memory == "low" else "float32"
        return TrainingConfig(**values)

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Minimise the method's loss from the original weights; the seconds include those of `prepared`."""
        self.check(job.task)
        self.check_model(model)
        model.check_labels(job.task.class_names)
        job, part = self.with_own_images(model, job), self.part_of(model)
        began = time.perf_counter()
        with self.prepared(part, job) as setup:
            seconds = time.perf_counter() - began
            result = self._train(part, setup)
        return replace(result, seconds=result.seconds + seconds)

    def _train(self, model: Model, setup: TrainingSetup) -> TrainingResult:
        """Run the training loop."""
        job = setup.job
        forget = Batches(job.forget, self.batch_size, derive_seed(job.seed, "forget"))
        retain = Batches(job.retain, self.batch_size, derive_seed(job.seed, "retain"))
        config = self.training_config(self.images_per_epoch(job))
        original, original_bytes = self._original(model, job.mask, job.original)
        self._log_memory(model.network, job.mask, config, original_bytes)
        model.network.train()
        if self.freeze_statistics:
            freeze_batch_norm(model.network)

        def loss(step: Step) -> dict[str, Tensor]:
            return self.loss(model, original, job.task, StepBatches(step, forget, retain, setup.state))

        try:
            with recomputed_activations(model.network, self.gradient_checkpointing, self.memory == "low"):
                return minimize(
                    model.network,
                    loss,
                    config,
                    seed=job.seed,
                    mask=job.mask,
                    trains=self.trains,
                    folder=job.folder,
                    fingerprint=job.fingerprint,
                    description=type(self).__name__,
                    project=setup.project,
                    on_step=job.on_step,
                )
        finally:
            model.network.eval()

    def _saves_memory(self, option: bool | None) -> bool:
        """The value of an option that saves memory: if not given, it follows --memory."""
        return self.memory == "low" if option is None else option

    def uses_original(self) -> bool:
        """Whether the loss reads the original with these options."""
        return self.needs_original

    def _original(self, model: Model, mask: Mask | None, copy: Model | None = None) -> tuple[Model, int]:
        """The original for `loss`, and the bytes that it takes beside the model; `copy` is one that exists already."""
        if not self.uses_original():
            return model, 0
        if self.share_teacher or (not self.differentiates_original and self._saves_memory(self.share_teacher)):
            twin, teacher = shared_teacher(model, mask, self.trains)
            return twin, teacher.nbytes
        twin = copy if copy is not None and copy.device == model.device else model.frozen()
        return twin, sum(tensor.nbytes for tensor in twin.network.state_dict().values())

    def _log_memory(
        self, network: torch.nn.Module, mask: Mask | None, config: TrainingConfig, original_bytes: int
    ) -> None:
        """Log an estimate of the memory that training takes, for large networks and with --memory low."""
        num_weights = sum(parameter.numel() for parameter in network.parameters())
        if not is_main() or (self.memory == "normal" and num_weights <= LARGE):
            return
        parts = estimate(
            *count(network, mask, self.trains),
            optimizer=config.optimizer,
            momentum=config.momentum,
            lean=config.lean_optimizer,
            in_backward=config.in_backward,
            dense_gradients=config.clip_before_mask,
            teacher_bytes=original_bytes,
        )
        log_user(described(parts))


def freeze_batch_norm(network: torch.nn.Module) -> None:
    """Put every batch-norm layer in evaluation mode, so that its running statistics stay."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
