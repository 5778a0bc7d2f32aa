"""What every model family can do, and all that a method may ask of it.

A model turns a batch into Examples: what its network receives, and the answer it should give. `errors` says how far
it is from that answer, sample by sample. Relabelling replaces the answer and leaves the question alone: that one
principle serves classifiers and diffusion models, which is the claim of the SalUn paper (Fan et al., 2024).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from erasure.core.errors import ModelError, NotApplicableError
from erasure.core.files import read_json
from erasure.data import Batch
from erasure.formats.safetensors_io import check_finite, hash_tensors, read_tensors
from erasure.models.info import Marks, ModelInfo, add_marks, marks_of


class Examples(NamedTuple):
    """Questions for a network: `inputs` (each b, ...), the wanted `target` (b, ...) and each sample's `weight` (b,)."""

    inputs: tuple[Tensor, ...]
    target: Tensor
    weight: Tensor

    def part(self, index: int, count: int) -> Examples:
        """Every `count`-th sample from `index` on: the share of one process or of one accumulation step."""
        if count == 1:
            return self
        chosen = slice(index, None, count)
        return Examples(tuple(value[chosen] for value in self.inputs), self.target[chosen], self.weight[chosen])

    @staticmethod
    def joined(first: Examples, second: Examples) -> Examples:
        """Both in one, for one forward pass."""
        inputs = tuple(torch.cat(pair) for pair in zip(first.inputs, second.inputs, strict=True))
        return Examples(inputs, torch.cat([first.target, second.target]), torch.cat([first.weight, second.weight]))


class Model(ABC):
    """A network with its family's loss.

    `network` is the module whose weights may move. `info` is what the model's `erasure.json` says of it: the data it
    was trained on, its class names, its sampling defaults, its recipe.
    """

    family: ClassVar[str]
    joint_attention: ClassVar[bool] = False  # text and image attend to each other in one, not by a cross-attention
    _kept_hashes: dict[str, str] | None = None  # while nothing changes the weights

    def __init__(self, network: nn.Module, info: ModelInfo, source: str = "") -> None:
        self.network, self.info, self.source = network, info, source

    @classmethod
    @abstractmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether the folder is laid out as this family's."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str) -> Self:
        """Load from a folder or hub id; raises ModelError when it is incomplete, damaged or not finite."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the folder that `load` and the stock library read."""

    def pipeline(self) -> Any:
        """The stock library's object of this model; raises NotApplicableError for a family that has no pipeline."""
        raise NotApplicableError(f"a {self.family} model has no pipeline: use its `network`")

    @abstractmethod
    def examples(self, batch: Batch, generator: torch.Generator, *, condition_drop: bool = False) -> Examples:
        """The questions this family is trained with; all chance comes from `generator` (on the CPU)."""

    @abstractmethod
    def prediction(self, inputs: tuple[Tensor, ...], guidance_scale: float = 1.0) -> Tensor:
        """What the network says to `inputs`."""

    @abstractmethod
    def criterion(self, prediction: Tensor, target: Tensor) -> Tensor:
        """How far each answer is from its target, (b,), means over everything but the batch."""

    @abstractmethod
    def relabeled(self, examples: Examples, anchor: Batch, teacher: Model) -> Examples:
        """The same questions with the answer that `teacher` gives for the anchor's labels instead."""

    @abstractmethod
    def fresh(self, seed: int) -> Self:
        """The same architecture with new random weights."""

    def per_sample_loss(self, examples: Examples, guidance_scale: float = 1.0) -> Tensor:
        """Weighted distance of each answer from its target, (b,)."""
        return self.criterion(self.prediction(examples.inputs, guidance_scale), examples.target) * examples.weight

    def with_dropped_condition(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """`labels` with a share replaced by the null class, where the family has one."""
        return labels

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss the model was trained with."""
        return self.per_sample_loss(self.examples(batch, generator, condition_drop=True)).mean()

    def relabeled_loss(self, batch: Batch, anchor: Batch, teacher: Model, generator: torch.Generator) -> Tensor:
        """How far the answers for `batch` are from those that `teacher` gives under the anchor's labels."""
        return self.per_sample_loss(self.relabeled(self.examples(batch, generator), anchor, teacher)).mean()

    def frozen(self) -> Self:
        """A fixed twin in evaluation mode."""
        twin = copy.copy(self)
        twin.network = copy.deepcopy(self.network).eval().requires_grad_(False)
        twin.info = copy.deepcopy(self.info)
        return twin

    def clone(self) -> Self:
        """A twin whose weights may move on their own."""
        twin = copy.copy(self)
        twin.network, twin.info = copy.deepcopy(self.network), copy.deepcopy(self.info)
        twin._kept_hashes = None
        return twin

    def to(self, device: torch.device) -> Self:
        """Move the network."""
        self.network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def network_on_disk(self) -> nn.Module:
        """The network in the number format it is kept in, `weights_dtype` of its erasure.json."""
        half = self.info.get("weights_dtype") == "float16"
        return copy.deepcopy(self.network).half() if half else self.network

    @property
    def hash(self) -> str:
        """SHA-256 of the network's tensors, in float32."""
        return self._hashed("network", self._network_hash)

    def _network_hash(self) -> str:
        state = self.network.state_dict()
        return hash_tensors({name: t.float() if t.is_floating_point() else t for name, t in state.items()})

    def keep_hashes(self) -> None:
        """Compute each hash once from now on; call `weights_change` before anything changes the weights."""
        if self._kept_hashes is None:
            self._kept_hashes = {}

    def weights_change(self) -> None:
        """Compute hashes anew from now on."""
        self._kept_hashes = None

    def _hashed(self, what: str, compute: Callable[[], str]) -> str:
        if self._kept_hashes is None:
            return compute()
        if what not in self._kept_hashes:
            self._kept_hashes[what] = compute()
        return self._kept_hashes[what]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in order of their labels; empty when the model knows none."""
        return tuple(self.info.get("class_names", ()))

    def check_labels(self, class_names: Sequence[str]) -> None:
        """Raise ModelError when this model's labels mean other classes or prompts than `class_names`.

        The labels of a text-to-image model are the prompts that it was last given, which may be those of another task.
        """
        own = self.class_names
        if own and class_names and own != tuple(class_names):
            raise ModelError(
                f"the labels of {self.source or 'this model'} belong to another task: they mean {own[0]!r}, ... "
                f"({len(own)} in all), not {class_names[0]!r}, ... ({len(class_names)}): set its prompts anew"
            )

    @property
    def marks(self) -> Marks:
        """What was erased from it before, and how."""
        return marks_of(self.info)

    def add_marks(self, marks: Mapping[str, Any]) -> None:
        """Add what another model's `marks` say: lists are joined, anything else takes the place of its own."""
        add_marks(self.info, marks)

    @property
    def erased_classes(self) -> tuple[int, ...]:
        """Classes that were erased from it before, by index."""
        return tuple(int(i) for i in self.info.get("erased_classes", ()))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it draws or reads."""
        channels, size = self.info["channels"], self.info["image_size"]
        return channels, size, size


def fill(network: nn.Module, weights: Path) -> None:
    """Load every tensor of a safetensors file; a name or shape that does not fit, or NaN, raises ModelError."""
    tensors = _read_maybe_sharded(weights)
    own = network.state_dict()
    wrong = sorted({*own} ^ {*tensors}) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise ModelError(f"{weights} does not fit its config.json: {len(wrong)} tensors differ, first {wrong[0]!r}")
    network.load_state_dict(tensors)
    check_finite(network, weights)


def _read_maybe_sharded(weights: Path) -> dict[str, Tensor]:
    index = weights.with_name(weights.name + ".index.json")
    if not index.is_file():
        return read_tensors(weights)[0]
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(read_json(index, ModelError).get("weight_map", {}).values())):
        tensors |= read_tensors(weights.with_name(Path(name).name))[0]
    return tensors


@contextmanager
def recomputed_activations(network: Any, asked: bool | None, suggested: bool) -> Iterator[None]:
    """Recompute activations in the backward pass while the block lasts, for less memory and about a third more time.

    Raises NotApplicableError when it was `asked` for and the network cannot; a mere suggestion is then dropped.
    """
    wanted = suggested if asked is None else asked
    able = getattr(network, "_supports_gradient_checkpointing", False)
    if asked and not able:
        raise NotApplicableError(
            f"--gradient-checkpointing: a {type(network).__name__} cannot recompute its activations: "
            "save memory with --accumulate instead"
        )
    if not (wanted and able) or network.is_gradient_checkpointing:
        yield
        return
    network.enable_gradient_checkpointing()
    try:
        yield
    finally:
        network.disable_gradient_checkpointing()
