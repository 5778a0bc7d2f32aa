"""The state of an unfinished training in one safetensors file: network, optimiser, average, step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from erasure.errors import RunError
from erasure.weights import read_tensors, write_tensors


def save_state(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Sequence[Tensor],
    buffers: Mapping[str, Tensor],
    step: int,
    fingerprint: str,
) -> None:
    """Write the state before `step`, atomically; `buffers` stand in for the network's own of those names."""
    tensors = {f"network/{name}": tensor for name, tensor in {**network.state_dict(), **buffers}.items()}
    tensors |= {f"ema/{i}": tensor for i, tensor in enumerate(ema)}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{key}": value for key, value in values.items() if isinstance(value, Tensor)}
    write_tensors(path, tensors, {"step": str(step), "fingerprint": fingerprint})


def load_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, ema: Sequence[Tensor], fingerprint: str
) -> int:
    """Put a saved state back in place; returns the step to go on with.

    Raises RunError when it was saved by a run with another fingerprint.
    """
    tensors, header = read_tensors(path)
    if header.get("fingerprint") != fingerprint:
        raise RunError(f"{path} belongs to a run with other settings: give another --out")
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        groups[kind][rest] = tensor
    network.load_state_dict(groups["network"])
    for i, tensor in groups["ema"].items():
        ema[int(i)].copy_(tensor)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups["optimizer"].items():
        number, _, key = name.partition("/")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():  # in the parameter's own layout, channels-last or not
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return int(header["step"])
