"""Memory of a training: an estimate before it starts, and the measured peak.

The estimate counts what grows with the network. Activations come on top and grow with the batch (less with
--gradient-checkpointing or --accumulate); so does the gradient of the tensor that the backward pass is at. Where the
optimiser updates each tensor within that pass, only one tensor has a gradient at a time.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from erasure.saliency.mask import Mask
from erasure.training import masked_parameters

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FLOAT = 4  # bytes; weights, gradients and an optimiser's state are float32
BLOCK = 256  # weights that share one scale in an 8-bit state (Dettmers et al., 2022)


class WeightCounts(NamedTuple):
    """Numbers of weights: all, trainable, in tensors that the mask splits, trainable there; the most in one tensor."""

    num_weights: int
    num_free: int
    num_split: int
    num_split_free: int
    num_largest: int


def count(
    network: nn.Module, mask: Mask | None = None, trains: Callable[[str], bool] = lambda name: True
) -> WeightCounts:
    """Count the weights of a network under a mask and a choice of tensors."""
    free = split = split_free = largest = 0
    for _, parameter, selected in masked_parameters.trainable_parts(network, mask, trains):
        chosen = parameter.numel() if selected is None else int(selected.sum())
        free, largest = free + chosen, max(largest, chosen)
        if selected is not None:
            split += parameter.numel()
            split_free += chosen
    return WeightCounts(sum(parameter.numel() for parameter in network.parameters()), free, split, split_free, largest)


def estimate(
    num_weights: int,
    num_free: int,
    num_split: int = 0,
    num_split_free: int = 0,
    num_largest: int = 0,
    *,
    optimizer: str = "adam",
    momentum: float = 0.9,
    lean: bool = False,
    in_backward: bool = False,
    dense_gradients: bool = False,
    teacher_bytes: int = 0,
) -> dict[str, int]:
    """Estimate the bytes of each part at the end of a backward pass, on the network's device.

    The numbers are those of `WeightCounts`. With `in_backward`, as in TrainingConfig, one tensor has a gradient; with
    `dense_gradients` (clip_before_mask) every weight has one, the most that a choice of tensors needs.
    """
    state = {"sgd": FLOAT if momentum else 0, "adamw8bit": 2 + 2 * FLOAT / BLOCK}.get(optimizer, 2 * FLOAT)
    gradients = num_largest if in_backward else num_weights if dense_gradients else num_free
    if lean:
        mask = -(-num_split // 8)
    elif num_weights <= masked_parameters.MAX_INDEXED:
        mask = 8 * num_split_free
    else:
        mask = num_split
    return {
        "weights": FLOAT * num_weights,
        "teacher": teacher_bytes,
        "gradients": FLOAT * gradients,
        "optimiser": round(state * num_free),
        "mask": mask,
        "compact copies": 0 if lean else FLOAT * num_split_free,
    }


def described(parts: Mapping[str, int]) -> str:
    """One line: the sum, then each part that is there, in GB (10^9 bytes), or in MB below one GB."""
    total = sum(parts.values())
    unit, size = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
    listed = ", ".join(f"{name} {value / size:.1f}" for name, value in parts.items() if value)
    return f"estimated memory: {total / size:.1f} {unit} ({listed}), activations aside"


@contextmanager
def measured_peak() -> Iterator[dict[str, int]]:
    """Yield a dictionary that has `peak_memory` after the block: by how many bytes memory rose at most.

    On CUDA it is the device's memory, else the process's resident memory; empty where the system does not report it.
    """
    found: dict[str, int] = {}
    gc.collect()
    if torch.cuda.is_available():
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        found["peak_memory"] = torch.cuda.max_memory_allocated() - start
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory that was freed before would be counted as still held
    try:
        RESET.write_text("5")  # the peak is taken anew from here (Linux, proc(5))
        start = _resident("VmRSS")
    except OSError:
        yield found
        return
    yield found
    found["peak_memory"] = _resident("VmHWM") - start


def _resident(entry: str) -> int:
    """An entry of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[entry].split()[0])
