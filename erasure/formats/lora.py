"""A LoRA of what an erasure changed: the best low-rank form of each layer's difference (Eckart and Young, 1936).

Every linear and convolution weight of the UNet that changed becomes two thin factors, under the names that kohya's
tools (ComfyUI, A1111) or PEFT (diffusers) read. Norms and biases have no such form and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasure.core.errors import NotApplicableError, OptionError, suggestion
from erasure.core.logging import log_user
from erasure.core.provenance import LoraReport
from erasure.formats.ldm_layout import original_names, prefix_of

KEYS = ("kohya", "peft")


@dataclass(frozen=True)
class Layer:
    """A module's difference as `up @ down`; `error` is what is missing, relative to the difference's norm `size`."""

    module: str
    down: Tensor
    up: Tensor
    error: float
    size: float


def factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`down` (rank, in, ...) and `up` (out, rank, ...), float64: the product nearest to `difference` (out, in, ...).

    A layer with fewer directions than `rank` is filled with zeros: loaders expect one rank for all. At full rank the
    product is the difference. The directions come from the smaller of the two Gram matrices.
    """
    matrix = difference.double().flatten(1)  # (out, in * k * k)
    out, inner = matrix.shape
    kept = min(rank, out, inner)
    if out <= inner:
        up = torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)[:, :kept]
        down = up.T @ matrix
    else:
        down = torch.linalg.eigh(matrix.T @ matrix)[1].flip(1)[:, :kept].T
        up = matrix @ down.T
    balance = (up.norm(dim=0) / down.norm(dim=1).clamp_min(1e-300)).sqrt()
    balance = torch.where((balance > 0) & balance.isfinite(), balance, torch.ones_like(balance))
    up, down = up / balance, down * balance[:, None]
    down = torch.cat([down, down.new_zeros(rank - kept, inner)])
    up = torch.cat([up, up.new_zeros(out, rank - kept)], dim=1)
    window = difference.shape[2:]
    return down.reshape(rank, -1, *window), up.reshape(out, rank, *(1 for _ in window))


def product(down: Tensor, up: Tensor) -> Tensor:
    """The difference (out, in, ...) that two factors stand for, float64."""
    return (up.double().flatten(1) @ down.double().flatten(1)).reshape(len(up), *down.shape[1:])


def decomposed(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int, dtype: torch.dtype, on: torch.device
) -> tuple[list[Layer], LoraReport]:
    """Every changed layer in factors of number format `dtype`, computed `on` a device, and how much is missing.

    The report has `relative_error` over all layers, the `worst` layer's, and what was `left_out`. Raises OptionError
    for a rank that no layer has, NotApplicableError when no layer changed.
    """
    changed = [name for name, tensor in after.items() if not torch.equal(before[name], tensor)]
    fitting = [name for name in changed if name.endswith(".weight") and after[name].dim() in (2, 4)]
    if not fitting:
        raise NotApplicableError("no linear or convolution weight of the UNet changed: there is nothing for a LoRA")
    full = max(min(after[name].flatten(1).shape) for name in fitting)
    if not 1 <= rank <= full:
        raise OptionError(f"--rank {rank} is outside 1 to {full}, the full rank of the largest layer that changed")
    log_user(f"looking for the nearest rank {rank} of {len(fitting)} layers")
    layers = []
    for name in fitting:
        difference = after[name].to(on, torch.float64) - before[name].to(on, torch.float64)
        down, up = (part.to(dtype) for part in factors(difference, rank))
        size = float(difference.norm())
        error = float((difference - product(down, up)).norm()) / size
        layers.append(Layer(name.removesuffix(".weight"), down.cpu(), up.cpu(), error, size))
    rest = [name for name in changed if name not in set(fitting)]
    return layers, _report(layers, rank, {name: (before[name], after[name]) for name in rest})


def _report(layers: list[Layer], rank: int, rest: Mapping[str, tuple[Tensor, Tensor]]) -> LoraReport:
    worst = max(layers, key=lambda layer: layer.error)
    inside = math.fsum(layer.size**2 for layer in layers)
    outside = math.fsum(float((after.double() - before.double()).square().sum()) for before, after in rest.values())
    return {
        "rank": rank,
        "layers": len(layers),
        "relative_error": math.sqrt(math.fsum((layer.error * layer.size) ** 2 for layer in layers) / inside),
        "worst": {"layer": worst.module, "relative_error": worst.error},
        "left_out": {
            "tensors": len(rest),
            "weights": sum(int((after != before).sum()) for before, after in rest.values()),
            "share_of_change": math.sqrt(outside / (inside + outside)),
        },
    }


def named(layers: list[Layer], keys: str, kind: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The factors under the names of `keys`, one of KEYS; raises OptionError for another.

    kohya's tools name the layers of SDXL as the original file does, those of 1 and 2 as diffusers does.
    """
    if keys not in KEYS:
        raise OptionError(f"unknown --lora-keys {keys!r}{suggestion(keys, KEYS)}")
    original = original_names(kind, "unet", config) if kind == "sdxl" else {}
    found = {}
    for layer in layers:
        if keys == "peft":
            found[f"unet.{layer.module}.lora_A.weight"] = layer.down
            found[f"unet.{layer.module}.lora_B.weight"] = layer.up
            continue
        name = original.get(f"{layer.module}.weight", layer.module)
        module = name.removeprefix(prefix_of(kind, "unet")).removesuffix(".weight").replace(".", "_")
        found[f"lora_unet_{module}.lora_down.weight"] = layer.down
        found[f"lora_unet_{module}.lora_up.weight"] = layer.up
        found[f"lora_unet_{module}.alpha"] = torch.tensor(float(len(layer.down)))
    return found


def kohya_metadata(kind: str, rank: int) -> dict[str, str]:
    """What kohya's tools and A1111 look for in a LoRA's header."""
    versions = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_base_model_version": versions[kind],
    }
