"""Low-rank factors beside linear layers while they are trained (Hu et al., 2021), one with the weights afterwards.

y = W x + b + scale * up (down x). The factors are parameters of their layer, so that optimiser, checkpoint and memory
estimate find them by name; a hook adds their product to the output.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

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
        _give(module, rank, generator)
        hooks.append(module.register_forward_hook(functools.partial(_added, scale=scale)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in modules:
            _merge(module, scale)


def _give(module: Any, rank: int, generator: torch.Generator) -> None:
    """Factors of `rank` for a linear layer, of which up is zero."""
    down = nn.init.kaiming_uniform_(torch.empty(rank, module.in_features), a=1, generator=generator)
    module.register_parameter(DOWN, nn.Parameter(down.to(module.weight)))
    module.register_parameter(UP, nn.Parameter(module.weight.new_zeros(module.out_features, rank)))


def _take(module: Any) -> None:
    """Remove them."""
    delattr(module, DOWN)
    delattr(module, UP)


def _added(module: Any, inputs: tuple[Tensor, ...], output: Tensor, *, scale: float) -> Tensor:
    inner = nn.functional.linear(inputs[0], getattr(module, DOWN))
    return output + scale * nn.functional.linear(inner, getattr(module, UP))


@torch.no_grad()
def _merge(module: Any, scale: float) -> None:
    down, up = (getattr(module, name).double() for name in (DOWN, UP))
    module.weight.copy_(module.weight.double() + scale * (up @ down))
    _take(module)


class SeveralFactors:
    """Some factors for each of several concepts beside the linear `modules`, by name; a sample sees those of its own.

    `chosen` (b, concepts) says which each sample of a forward pass is of; None: none sees any. They are gone when the
    block is left, and the weights are as they were.
    """

    def __init__(self, modules: Mapping[str, nn.Module], concepts: int, rank: int, generator: torch.Generator) -> None:
        self.chosen: Tensor | None = None
        self._modules, self._count = dict(modules), concepts
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for module in self._modules.values():
            _give(module, concepts * rank, generator)

    def __enter__(self) -> Self:
        self._hooks += [module.register_forward_hook(self._added) for module in self._modules.values()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in self._modules.values():
            _take(module)

    def _added(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.chosen is None:
            return output
        inner = nn.functional.linear(inputs[0], getattr(module, DOWN)).unflatten(-1, (self._count, -1))
        seen = (inner * self.chosen[:, None, :, None].to(inner)).flatten(-2)
        return output + nn.functional.linear(seen, getattr(module, UP))

    def changes(self, name: str) -> Tensor:
        """dW_i (concepts, out, in) of the matrix `name`, float64, on the CPU."""
        module = self._modules[name]
        down, up = (getattr(module, part).detach().cpu().double() for part in (DOWN, UP))
        return up.unflatten(1, (self._count, -1)).movedim(1, 0) @ down.unflatten(0, (self._count, -1))
