"""Low-rank factors beside linear layers while they are trained (Hu et al., 2021), one with the weights afterwards.

y = W x + b + scale * up (down x). The factors are parameters of their layer, so that whoever reads a network by the
names of its tensors (optimiser, checkpoint, estimate of memory) finds them; a hook adds what they say.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DOWN, UP = "low_rank_down", "low_rank_up"


def is_factor(name: str) -> bool:
    """Whether the tensor `name` of a network is one of the two factors of a layer."""
    return name.rpartition(".")[2] in (DOWN, UP)


@contextmanager
def low_rank(
    network: nn.Module, layers: Sequence[str], rank: int, scale: float, generator: torch.Generator
) -> Iterator[None]:
    """Give the linear `layers` (by name) factors down (rank, in) and up (out, rank) until the block is left.

    Up begins at zero, so the network answers as before; down is drawn from `generator` (He et al., 2015). However the
    block is left, the products are then in the weights and the factors are gone.
    """
    modules: list[Any] = [network.get_submodule(name) for name in layers]
    hooks = []
    for module in modules:
        weight = module.weight
        down = nn.init.kaiming_uniform_(torch.empty(rank, module.in_features), a=1, generator=generator)
        module.register_parameter(DOWN, nn.Parameter(down.to(weight)))
        module.register_parameter(UP, nn.Parameter(weight.new_zeros(module.out_features, rank)))
        hooks.append(module.register_forward_hook(functools.partial(_added, scale=scale)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in modules:
            _merge(module, scale)


def _added(module: Any, inputs: tuple[Tensor, ...], output: Tensor, *, scale: float) -> Tensor:
    inner = nn.functional.linear(inputs[0], getattr(module, DOWN))
    return output + scale * nn.functional.linear(inner, getattr(module, UP))


@torch.no_grad()
def _merge(module: Any, scale: float) -> None:
    down, up = (getattr(module, name).double() for name in (DOWN, UP))
    module.weight.copy_(module.weight.double() + scale * (up @ down))
    delattr(module, DOWN)
    delattr(module, UP)
