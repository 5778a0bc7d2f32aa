"""Recipes: how a model of each family is trained from nothing, and the training itself.

A recipe is recorded whole in the model's `erasure.json`, so that it can be trained again without some of its data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.core.rng import derive_seed
from erasure.data import Batches, Dataset
from erasure.models import Model
from erasure.models.classifier import Classifier
from erasure.models.classifier_nets import ARCHITECTURES
from erasure.models.ddpm import DDPM, SAMPLING
from erasure.models.info import ModelInfo
from erasure.training.loop import OnStep, Optimizer, Precision, Schedule, Step, TrainingConfig, TrainingResult, minimize


@dataclass(frozen=True)
class Recipe:
    """What both kinds of training share."""

    kind: ClassVar[str]

    steps: Annotated[int, "optimiser steps"]
    batch_size: Annotated[int, "images a step"]
    learning_rate: Annotated[float, "peak step size"]
    optimizer: Annotated[Optimizer, "optimiser"] = "adamw"
    weight_decay: Annotated[float, "weight decay"] = 0.01
    momentum: Annotated[float, "momentum of sgd"] = 0.9
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for none"] = 1.0
    schedule: Annotated[Schedule, "how the step size goes on after the warm-up"] = "cosine"
    warmup_steps: Annotated[int, "steps over which the step size grows"] = 100
    ema_decay: Annotated[float, "decay of the averaged weights that are kept, 0 for none"] = 0.0
    precision: Annotated[Precision, "number format of the forward pass; weights stay float32"] = "float32"
    accumulate: Annotated[int, "parts that each batch is computed in, to save memory"] = 1
    compile: Annotated[bool, "compile the network with torch.compile"] = False
    max_shard_size: Annotated[str, "largest file of the finished weights"] = "10GB"
    channels_last: Annotated[bool, "lay images out channels-last, faster on some GPUs"] = False
    checkpoint_every: Annotated[int, "steps between checkpoints, from which a killed run continues"] = 250
    weights_dtype: Annotated[Literal["float32", "float16"], "number format of the finished weights on disk"] = "float32"

    def check(self, dataset: Dataset) -> None:
        """Raise OptionError for a value outside its range, or images that the network cannot take."""
        height, width = dataset.images.shape[1:3]
        if height != width:
            raise OptionError(f"images are {width} x {height}: give --image-size to make them square")
        if self.steps < 1:
            raise OptionError(f"--steps {self.steps} must be at least 1")
        self.loop().check(self.batch_size)

    def new(self, dataset: Dataset, seed: int) -> Model:
        """An untrained model for `dataset` with random weights."""
        return new_model(self, dataset, seed)

    def fit(self, model: Any, dataset: Dataset, seed: int, *, folder: Path, fingerprint: str) -> TrainingResult:
        """Train `model` in place on `dataset`, resumable in `folder`."""
        return fit(model, self, dataset, seed, folder=folder, fingerprint=fingerprint)

    def loop(self) -> TrainingConfig:
        """The same fields as the loop takes them."""
        return TrainingConfig(
            **{key: value for key, value in asdict(self).items() if key in TrainingConfig.__annotations__}
        )


@dataclass(frozen=True)
class DDPMRecipe(Recipe):
    """A class-conditional (or unconditional) DDPM with averaged weights."""

    kind = "ddpm"

    steps: Annotated[int, "optimiser steps"] = 2500
    batch_size: Annotated[int, "images a step"] = 128
    learning_rate: Annotated[float, "peak step size"] = 2e-3
    ema_decay: Annotated[float, "decay of the averaged weights that are kept, 0 for none"] = 0.995
    channels: Annotated[str, "channels of each level, joined by commas; empty: chosen by image size"] = ""
    layers_per_block: Annotated[int, "residual blocks a level; 0: chosen by image size"] = 0
    dropout: Annotated[float, "dropout in the residual blocks"] = 0.0
    condition_drop: Annotated[float, "share of labels replaced by the null class, for guidance"] = 0.1
    conditional: Annotated[bool, "whether the network is told the class"] = True

    def check(self, dataset: Dataset) -> None:
        """Also: channels that attention and group norm can divide, and levels that halve the image evenly."""
        super().check(dataset)
        widths, size = self.widths(dataset), dataset.images.shape[1]
        if not widths or any(width < 16 or width % 16 for width in widths):
            raise OptionError(f"--channels {self.channels}: expected multiples of 16 joined by commas, such as 48,96")
        if size % (1 << (len(widths) - 1)):
            raise OptionError(
                f"--channels {self.channels}: images of {size} pixels cannot be halved {len(widths) - 1} times"
            )
        if not 0 <= self.dropout < 1:
            raise OptionError(f"--dropout {self.dropout} is outside [0, 1)")
        if not 0 <= self.condition_drop < 1:
            raise OptionError(f"--condition-drop {self.condition_drop} is outside [0, 1)")

    def widths(self, dataset: Dataset) -> tuple[int, ...]:
        """Channels of each level; 0 stands for a part of --channels that is no number."""
        if not self.channels:
            return _default_widths(dataset.images.shape[1])
        return tuple(int(part) if part.strip().isdigit() else 0 for part in self.channels.split(","))

    def network_config(self, dataset: Dataset) -> dict[str, Any]:
        """Keywords of UNet2DModel for images of this size: attention at levels of 16 pixels or fewer but the first."""
        size, channels = dataset.images.shape[1], dataset.images.shape[3]
        widths = self.widths(dataset)
        levels = [i > 0 and size >> i <= 16 for i in range(len(widths))]
        return {
            "sample_size": size,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": widths,
            "layers_per_block": self.layers_per_block or (1 if size <= 16 else 2),
            "down_block_types": tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in levels),
            "up_block_types": tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)),
            "attention_head_dim": 16,
            "norm_num_groups": 8,
            "dropout": self.dropout,
            "num_class_embeds": len(dataset.class_names) + 1 if self.conditional else None,
        }


@dataclass(frozen=True)
class ClassifierRecipe(Recipe):
    """A classifier with shifted and, where the data allows it, mirrored images.

    `mislabel` is a share of wrong labels in its data (erasure.data.forget_sets); `fit` takes the data as it is given.
    """

    kind = "classifier"

    arch: Annotated[str, f"architecture: {', '.join(ARCHITECTURES)}"] = "resnet18"
    steps: Annotated[int, "optimiser steps"] = 2000
    batch_size: Annotated[int, "images a step"] = 128
    learning_rate: Annotated[float, "peak step size"] = 3e-3
    weight_decay: Annotated[float, "decoupled weight decay"] = 0.05
    augment: Annotated[bool, "shift images and, where the data allows it, mirror them"] = True
    mislabel: Annotated[float, "share of labels that are made wrong, to be found by --forget mislabelled"] = 0.0

    def check(self, dataset: Dataset) -> None:
        """Also: a share of wrong labels below 1."""
        super().check(dataset)
        if not 0 <= self.mislabel < 1:
            raise OptionError(f"--mislabel {self.mislabel} is outside [0, 1)")


def new_model(recipe: Recipe, dataset: Dataset, seed: int) -> Model:
    """An untrained model for `dataset` with random weights."""
    info: ModelInfo = {
        "channels": dataset.images.shape[3],
        "image_size": dataset.images.shape[1],
        "class_names": list(dataset.class_names),
        "data": dataset.name,
        "weights_dtype": recipe.weights_dtype,
        "max_shard_size": recipe.max_shard_size,
    }
    weights_seed = derive_seed(seed, "weights")
    if isinstance(recipe, ClassifierRecipe):
        if dataset.aspects:
            info["aspects"] = {name: asdict(aspect) for name, aspect in dataset.aspects.items()}
        return Classifier.new(recipe.arch, info, weights_seed)
    if not isinstance(recipe, DDPMRecipe):
        raise OptionError(f"unknown kind of model {recipe.kind!r}: expected ddpm or classifier")
    info["sampling"] = dict(SAMPLING)
    if recipe.conditional:
        info |= {"null_label": len(dataset.class_names), "condition_drop": recipe.condition_drop}
    return DDPM.new(recipe.network_config(dataset), info, weights_seed)


def fit(
    model: Model,
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    *,
    folder: Path | None = None,
    fingerprint: str = "",
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Train `model` in place on `dataset`; it ends with the averaged weights when the recipe keeps an average."""
    shifts = isinstance(recipe, ClassifierRecipe) and recipe.augment
    flips = shifts or not isinstance(recipe, ClassifierRecipe)
    batches = Batches(dataset, recipe.batch_size, derive_seed(seed, "batches"), augment=flips, crop=shifts)
    network: Any = model.network
    network.train()
    if recipe.channels_last:
        network.to(memory_format=torch.channels_last)

    def loss(step: Step) -> dict[str, Tensor]:
        examples = model.examples(batches.at(step.index), step.generator, condition_drop=True)
        return {"loss": model.per_sample_loss(step.own(examples)).mean()}

    outcome = minimize(network, loss, recipe.loop(), seed=seed, folder=folder, fingerprint=fingerprint, on_step=on_step)
    if outcome.ema is not None:
        network.load_state_dict(outcome.ema, strict=False)
    network.eval().to(memory_format=torch.contiguous_format)
    return outcome


def _default_widths(size: int) -> tuple[int, ...]:
    """Channels for images of `size` pixels: 1.6 M weights at 8 pixels, 22 M at 32."""
    if size <= 8:
        return (48, 96)
    return (64, 128, 128) if size <= 16 else (128, 192, 256)


def recipe_of(info: ModelInfo) -> Recipe | None:
    """The recipe of a network on classes that a model's `erasure.json` records, None when it records none."""
    recorded = info.get("recipe") or {}
    kinds: dict[str | None, type[Recipe]] = {kind.kind: kind for kind in (DDPMRecipe, ClassifierRecipe)}
    kind: Any = kinds.get(recorded.get("kind"))
    if kind is None:
        return None
    known = {field.name for field in fields(kind)}
    return replace(kind(), **{key: value for key, value in recorded.items() if key in known})
