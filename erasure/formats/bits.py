"""Booleans as one bit each, eight to a byte, the first in the highest bit (numpy's packbits)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def packed(chosen: Tensor) -> Tensor:
    """The bits of a boolean tensor of any shape, row by row, as uint8 (ceil(n / 8),), on the same device."""
    flat = chosen.detach().reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy()))
    eights = torch.nn.functional.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    return (eights << _places(flat.device)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The boolean tensor of `shape` that `packed` made `bits` (uint8) from; raises ValueError for other bits."""
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((count + 7) // 8,):
        raise ValueError(f"{tuple(bits.shape)} {bits.dtype} do not hold {count} bits")
    if bits.device.type == "cpu":
        flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=count).view(bool))
    else:
        flat = (bits[:, None] >> _places(bits.device) & 1).flatten()[:count].bool()
    return flat.reshape(tuple(shape))


def _places(device: torch.device) -> Tensor:
    """By how many places each of the eight bits of a byte is shifted."""
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
