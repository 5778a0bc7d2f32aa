"""Weights at some positions of a tensor: read them as a vector, and write a vector back.

Positions (`where`) are None for the whole tensor, booleans of its shape, indices into the flat tensor (fastest), or
booleans packed as bits (smallest).
"""

from __future__ import annotations

from torch import Tensor, uint8
from torch import bool as boolean

from erasure.formats.bits import unpacked


def values_at(tensor: Tensor, where: Tensor | None) -> Tensor:
    """Copy the values of `tensor` at `where`: a vector (n,), or the whole tensor in its shape for None."""
    if where is None:
        return tensor.clone()
    where = indexable(where, tensor)
    return tensor.reshape(-1)[where.reshape(-1)]


def write_at(tensor: Tensor, where: Tensor | None, values: Tensor) -> None:
    """Write `values`, shaped as `values_at` returns them, to `tensor` at `where`, and nothing anywhere else."""
    if where is None:
        tensor.copy_(values)
        return
    where = indexable(where, tensor)
    if where.dtype == boolean:
        tensor.masked_scatter_(where, values)
    else:
        tensor.view(-1).index_copy_(0, where, values)


def indexable(where: Tensor, tensor: Tensor) -> Tensor:
    """Packed bits as indices or booleans of `tensor`; other positions unchanged."""
    return as_indices(unpacked(where, tensor.shape), tensor) if where.dtype == uint8 else where


def as_indices(selected: Tensor, tensor: Tensor) -> Tensor:
    """Booleans as indices into the flat `tensor`, or as they are where its layout has no flat view to write to."""
    return selected.reshape(-1).nonzero().flatten() if tensor.is_contiguous() else selected
