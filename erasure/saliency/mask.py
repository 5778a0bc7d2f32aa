"""Mask: one boolean a weight. Exact density, set algebra, one bit a weight on disk with its provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.errors import MaskError, ModelError, OptionError
from erasure.core.files import parse_object
from erasure.core.rng import derive_seed
from erasure.formats.bits import packed, unpacked
from erasure.formats.safetensors_io import read_tensors, write_tensors

FORMAT = "erasure-mask-1"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Mask:
    """True where a weight may move, by tensor name; `provenance` says from which model, concept, rule and seed."""

    tensors: Mapping[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def top(cls, scores: Mapping[str, Tensor], density: float, provenance: Mapping[str, Any] | None = None) -> Mask:
        """The `round(density * n)` weights with the highest scores over all tensors together (SalUn eq. 4).

        `scores` are non-negative and finite, any shapes. Ties are broken by position: earlier tensors and earlier
        weights first. The threshold is found by counting, so nothing of the size of the network is sorted or copied.
        """
        check_density(density)
        total = sum(score.numel() for score in scores.values())
        wanted = round(density * total)
        threshold, ties = _threshold(scores, wanted)
        tensors = {}
        for name, score in scores.items():
            flat = score.reshape(-1).float()
            chosen = flat > threshold
            if ties > 0:
                equal = (flat == threshold).nonzero().flatten()[:ties]
                chosen[equal] = True
                ties -= len(equal)
            tensors[name] = chosen.reshape(score.shape)
        return cls(tensors, {**(provenance or {}), "density": density})

    @classmethod
    def random(cls, like: Mask, density: float, seed: int) -> Mask:
        """A mask of exactly `round(density * n)` weights drawn uniformly: the control for saliency."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "random mask"))
        scores = {name: torch.rand(t.shape, generator=generator) for name, t in like.tensors.items()}
        return cls.top(scores, density, {**like.provenance, "score": "random", "seed": seed})

    @property
    def density(self) -> float:
        """Share of the weights that may move."""
        return self.selected / max(1, self.total)

    @property
    def selected(self) -> int:
        """How many weights may move."""
        return sum(int(tensor.sum()) for tensor in self.tensors.values())

    @property
    def total(self) -> int:
        """How many weights there are."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def by_block(self) -> dict[str, dict[str, float]]:
        """Density and number of weights of each block of the network (the first two parts of its tensors' names)."""
        counts: dict[str, list[int]] = {}
        for name, tensor in self.tensors.items():
            parts = name.split(".")
            block = ".".join(parts[:2] if len(parts) > 2 and parts[1].isdigit() else parts[:1])
            selected, total = counts.setdefault(block, [0, 0])
            counts[block] = [selected + int(tensor.sum()), total + tensor.numel()]
        return {block: {"density": chosen / total, "weights": total} for block, (chosen, total) in counts.items()}

    def check(self, network: nn.Module) -> None:
        """Raise MaskError when the mask was made for a network with other tensors."""
        own = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        masked = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if own != masked:
            raise MaskError(
                f"the mask was made for another network ({len(masked):,} tensors, {self.total:,} weights; this one has "
                f"{len(own):,} and {sum(p.numel() for p in network.parameters()):,}): "
                "make one with `erasure mask --model <this model>`"
            )

    def __and__(self, other: Mask) -> Mask:
        return self._combined(other, torch.logical_and, "and")

    def __or__(self, other: Mask) -> Mask:
        return self._combined(other, torch.logical_or, "or")

    def __invert__(self) -> Mask:
        return Mask(
            {n: ~t for n, t in self.tensors.items()}, {**self.provenance, "density": 1 - self.density, "inverted": True}
        )

    def _combined(self, other: Mask, rule: Any, word: str) -> Mask:
        if {n: t.shape for n, t in self.tensors.items()} != {n: t.shape for n, t in other.tensors.items()}:
            raise MaskError("masks of two different networks cannot be combined")
        tensors = {name: rule(tensor, other.tensors[name]) for name, tensor in self.tensors.items()}
        mask = Mask(tensors, {word: [self.provenance, other.provenance]})
        return Mask(tensors, {**mask.provenance, "density": mask.density})

    def save(self, path: str | Path) -> None:
        """Write one bit a weight as safetensors, atomically, with shapes and provenance in its header."""
        bits = {name: packed(tensor.cpu()) for name, tensor in self.tensors.items()}
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        header = {"format": FORMAT, "shapes": json.dumps(shapes), "provenance": json.dumps(self.provenance)}
        write_tensors(Path(path), bits, header)

    @classmethod
    def load(cls, path: str | Path) -> Mask:
        """Read a mask; raises MaskError when the file is missing, damaged or no mask."""
        try:
            bits, header = read_tensors(Path(path))
        except ModelError as error:
            raise MaskError(f"--mask {error}") from error
        if header.get("format") != FORMAT:
            raise MaskError(f"--mask {path} is not a mask: make one with `erasure mask`")
        try:
            shapes = {
                name: tuple(shape)
                for name, shape in parse_object(
                    header["shapes"], f"--mask {path} is damaged: its list of shapes", MaskError
                ).items()
            }
            provenance = parse_object(header["provenance"], f"--mask {path} is damaged: its provenance", MaskError)
            for name, shape in shapes.items():
                unpacked(bits[name], shape)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise MaskError(f"--mask {path} is damaged: {error}") from error
        return cls(_Bits(bits, shapes), provenance)


class _Bits(Mapping[str, Tensor]):
    """Booleans by name that are kept as one bit a weight and unpacked, tensor by tensor, when they are asked for."""

    def __init__(self, bits: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._bits, self._shapes = bits, shapes

    def __getitem__(self, name: str) -> Tensor:
        return unpacked(self._bits[name], self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def check_density(density: float) -> None:
    """Raise OptionError for a density outside (0, 1]."""
    if not 0 < density <= 1:
        raise OptionError(f"--density {density} is outside (0, 1]: 0.5 keeps the top half")


def _threshold(scores: Mapping[str, Tensor], wanted: int) -> tuple[float, int]:
    """The `wanted`-th highest score, and how many weights that equal it belong to the mask.

    Non-negative floats are ordered as their bits are, so two counts of 2^16 bins (upper bits, then lower bits of the
    bin that holds the rank) find it exactly.
    """
    if wanted == 0:
        return float("inf"), 0
    upper, above = _bin_of_rank(_histogram(scores, None), wanted)
    lower, above_within = _bin_of_rank(_histogram(scores, upper), wanted - above)
    bits = np.array([(upper << 16) | lower], dtype=np.int32)
    return float(bits.view(np.float32)[0]), wanted - above - above_within


def _bin_of_rank(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin in which the `wanted`-th highest value lies, and how many values are in the bins above it."""
    from_top = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, wanted))
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


def _histogram(scores: Mapping[str, Tensor], upper: int | None) -> Tensor:
    """Counts of the upper 16 bits of all scores, or of the lower 16 of those whose upper bits are `upper`."""
    counts = torch.zeros(1 << 16, dtype=torch.int64)
    for name, score in scores.items():
        for chunk in score.reshape(-1).split(CHUNK):
            values = chunk.float().contiguous()
            if upper is None and not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
                raise MaskError(f"the saliency of {name!r} is not finite: the model or its data is damaged")
            bits = values.view(torch.int32)
            part = bits >> 16 if upper is None else bits[(bits >> 16) == upper] & 0xFFFF
            counts += torch.bincount(part, minlength=1 << 16).cpu()
    return counts
