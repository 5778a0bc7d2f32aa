"""Booleans as one bit each, eight to a byte, the first in the highest bit (numpy's packbits)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def packed(chosen: Tensor) -> Tensor:
    """The bits of a boolean tensor of any shape, row by row, as uint8 (ceil(n / 8),)."""
    return torch.from_numpy(np.packbits(chosen.detach().cpu().numpy().reshape(-1)))


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor of `shape` that `packed` made `bits` (uint8) from; raises ValueError for other bits."""
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((count + 7) // 8,):
        raise ValueError(f"{tuple(bits.shape)} {bits.dtype} do not hold {count} bits")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).view(bool)).reshape(shape)
