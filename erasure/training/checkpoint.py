"""Checkpoints of a training: network, optimiser, averaged weights and step, as unfinished work on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erasure.formats.unfinished import keep, restored


def save_state(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Sequence[Tensor],
    buffers: Mapping[str, Tensor],
    step: int,
    fingerprint: str,
) -> None:
    """Write the state before `step` atomically.

    Args:
        path: The file.
        network: The network in training.
        optimizer: Its optimiser, whose state may be tensors of any type and shape, and numbers.
        ema: The averaged weights, if any.
        buffers: Buffers to save in place of the network's own of those names.
        step: The step to continue with.
        fingerprint: Identifies the run.
    """
    tensors = {f"network/{name}": tensor for name, tensor in {**network.state_dict(), **buffers}.items()}
    tensors |= {f"ema/{i}": tensor for i, tensor in enumerate(ema)}
    for i, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{i}/{key}"] = value
            elif isinstance(value, int | float):
                tensors[f"number/{i}/{key}"] = torch.tensor(value, dtype=torch.float64)
    keep(path, tensors, step, fingerprint)


def load_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, ema: Sequence[Tensor], fingerprint: str
) -> int:
    """Load a checkpoint into network, optimiser and `ema`; returns the step to continue with.

    Raises RunError for the checkpoint of a run with another fingerprint.
    """
    tensors, step = restored(path, fingerprint)
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}, "optimizer": {}, "number": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        groups[kind][rest] = tensor
    network.load_state_dict(groups["network"])
    for i, tensor in groups["ema"].items():
        ema[int(i)].copy_(tensor)
    state: dict[int, dict[str, Any]] = {}
    for kind in ("optimizer", "number"):
        for name, tensor in groups[kind].items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = tensor if kind == "optimizer" else _plain(tensor.item())
    _fill(optimizer, state)
    return step


def _fill(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Load `state` by number of the parameter, each tensor in the number format it was saved in."""
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, saved in state.items():
        parameter, values = parameters[number], optimizer.state[parameters[number]]
        for key, value in saved.items():
            if not isinstance(value, Tensor):
                continue
            if value.shape == parameter.shape:  # in the parameter's own layout, channels-last or not
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif values[key].dtype != value.dtype:
                values[key] = value.to(values[key].device)


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number
