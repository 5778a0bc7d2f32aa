"""A sparse difference between two sets of weights: exact on those it was taken from, added to those of a relative.

A delta stores what was added to each changed weight. A floating-point sum does not always give the cleaned bits; where
it does not, the cleaned value is stored too. So a delta gives the cleaned weights bit for bit on its own base, and on
another fine-tune of the same architecture it adds `cleaned - base`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from erasure.core.errors import ModelError
from erasure.formats.bits import packed, unpacked

DELTA = "erasure-delta-2"
# Before, the cleaned weights themselves were stored: such a delta fits its own base only.
VALUES_ONLY = "erasure-delta-1"
BITS_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}


def as_bits(tensor: Tensor) -> Tensor:
    """The flat tensor's bits as integers, so that -0.0 differs from 0.0 and a NaN equals itself."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(BITS_OF[flat.element_size()])


def difference(base: Mapping[str, Tensor], cleaned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was added, as `<name>::change` with `::index` (positions), `::bits` (one bit a weight) or neither.

    Of the three each tensor takes the smallest; tensors that are equal take nothing. `::fixed` has the positions where
    the sum is not the cleaned weight, `::exact` what it is there. Integers are stored as they are, in `::values`.
    """
    found: dict[str, Tensor] = {}
    for name, after in cleaned.items():
        flat, before = (state.detach().cpu().contiguous().reshape(-1) for state in (after, base[name]))
        changed = as_bits(flat) != as_bits(before)
        if not bool(changed.any()):
            continue
        form = _smallest(int(changed.sum()), flat)
        chosen = changed if form else torch.ones_like(changed)
        if form == "index":
            found[f"{name}::index"] = _positions(changed)
        elif form == "bits":
            found[f"{name}::bits"] = packed(changed)
        if not flat.is_floating_point():
            found[f"{name}::values"] = flat[chosen]
            continue
        found[f"{name}::change"] = change = flat[chosen] - before[chosen]
        wrong = torch.zeros_like(changed)
        wrong[chosen] = as_bits(before[chosen] + change) != as_bits(flat[chosen])
        if bool(wrong.any()):
            found[f"{name}::fixed"], found[f"{name}::exact"] = _positions(wrong), flat[wrong]
    return found


def _smallest(count: int, flat: Tensor) -> str:
    total, size = flat.numel(), flat.element_size()
    sizes = {
        "index": count * (size + (8 if total >= 1 << 31 else 4)),
        "bits": count * size + (total + 7) // 8,
        "": total * size,
    }
    return min(sizes, key=lambda key: sizes[key])


def _positions(chosen: Tensor) -> Tensor:
    return chosen.nonzero().flatten().to(torch.int64 if chosen.numel() >= 1 << 31 else torch.int32)


def applied(base: Mapping[str, Tensor], delta: Mapping[str, Tensor], exact: bool = True) -> dict[str, Tensor]:
    """The tensors that `difference` was taken from or, if not `exact`, `base` with the same added.

    Raises ModelError when the delta names tensors the base lacks, or does not fit them.
    """
    cleaned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in base.items()}
    for key, stored in delta.items():
        name, _, kind = key.partition("::")
        if kind not in ("change", "values"):
            continue
        if name not in cleaned:
            raise ModelError(f"the delta changes tensor {name!r}, which the model does not have")
        flat = cleaned[name].reshape(-1)
        try:
            chosen = _chosen(flat, delta.get(f"{name}::index"), delta.get(f"{name}::bits"))
            values = stored if kind == "values" else flat[chosen] + stored
            if values.shape != flat[chosen].shape or values.dtype != flat.dtype:
                raise ValueError("another size")
            flat[chosen] = values
            if exact and f"{name}::fixed" in delta:
                flat[delta[f"{name}::fixed"].long()] = delta[f"{name}::exact"]
        except (RuntimeError, IndexError, ValueError, KeyError) as error:
            raise ModelError(f"the delta's change of tensor {name!r} does not fit: the file is damaged") from error
    return cleaned


def _chosen(flat: Tensor, index: Tensor | None, bits: Tensor | None) -> Tensor:
    """Which weights the delta speaks of: positions, or a boolean each."""
    if index is not None:
        return index.long()
    if bits is not None:
        return unpacked(bits, (flat.numel(),))
    return torch.ones(flat.numel(), dtype=torch.bool)


def check_fits(shapes: Mapping[str, list[int]], network: Mapping[str, Tensor], refusal: str) -> None:
    """Raise ModelError, beginning with `refusal`, when the network lacks a tensor or has it in another shape."""
    for name, shape in shapes.items():
        own = list(network[name].shape) if name in network else None
        if own != list(shape):
            has = f"has it as {tuple(own)}" if own else "does not have"
            raise ModelError(f"{refusal}: it changes {name!r} {tuple(shape)}, which that model {has}")
