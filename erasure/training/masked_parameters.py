"""The weights an optimiser may move, and no others.

A tensor that the mask splits is represented by a compact copy of its free weights: the optimiser keeps state for those
alone, and whatever it does to them (momentum, weight decay, noise), the held weights of the network are never written.

Gradients move to the compact copies as the backward pass produces them, so that those of the whole network never exist
at once. With `lean` the values of the copies exist for one tensor at a time, while the optimiser works on it. Where
nothing needs all gradients together, `step_in_backward` lets them go one by one as well (Lv et al., 2023, "LOMO").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from erasure.core.errors import OptionError
from erasure.saliency.mask import Mask

LISTED = 1 << 25  # networks of more weights keep one byte a weight in place of eight a free weight


class MaskedPart(NamedTuple):
    """A tensor with free weights; `selected` says which, in its shape; None: all of them."""

    name: str
    parameter: nn.Parameter
    selected: Tensor | None


def free_parts(
    network: nn.Module, mask: Mask | None = None, trains: Callable[[str], bool] = lambda name: True
) -> Iterator[MaskedPart]:
    """Every tensor of `network` in which `trains` (by name) and `mask` (by position) leave a weight free."""
    for name, parameter in network.named_parameters():
        selected = mask.tensors[name].to(parameter.device) if mask is not None else None
        if not trains(name) or (selected is not None and not bool(selected.any())):
            continue
        yield MaskedPart(name, parameter, None if selected is None or bool(selected.all()) else selected)


class MaskedParameters:
    """`parameters` for an optimiser; `collect` brings gradients to them and `step` their new values to the network."""

    def __init__(
        self,
        network: nn.Module,
        mask: Mask | None = None,
        trains: Callable[[str], bool] = lambda name: True,
        *,
        norm_over_all: bool = False,
        lean: bool = False,
    ) -> None:
        """Free are the weights that `trains` admits by name and `mask` by position.

        Tensors without any free weight stop asking for a gradient. `norm_over_all` keeps theirs, and everybody else's,
        until `collect`, for a norm over all of them. `lean` gives the same bits in less memory and more time.
        """
        self._network, self._lean, self._dense = network, lean, norm_over_all
        self._flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        self._split: list[tuple[nn.Parameter, nn.Parameter, Tensor]] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.parameters: list[nn.Parameter] = []
        listed = sum(parameter.numel() for parameter in network.parameters()) <= LISTED
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(norm_over_all and trains(name))
        for _, parameter, selected in free_parts(network, mask, trains):
            parameter.requires_grad_(True)
            if selected is None:
                self.parameters.append(parameter)
                continue
            compact = nn.Parameter(_placeholder(selected, parameter) if lean else taken(parameter.detach(), selected))
            where = packed(selected) if lean else _listed(selected, parameter) if listed else selected
            self.parameters.append(compact)
            self._split.append((parameter, compact, where))
            if not norm_over_all:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(_mover(parameter, compact, where)))
        if not self.parameters:
            self.release()
            raise OptionError("no weight may move: the mask and the choice of weights leave nothing to train")

    @property
    def holders(self) -> list[nn.Parameter]:
        """The parameters that hold gradients after a backward pass."""
        return list(self._network.parameters()) if self._dense else self.parameters

    @torch.no_grad()
    def collect(self) -> None:
        """Move what is still in the network of the free part of each gradient to the optimiser's parameters."""
        if not self._dense:
            return
        for parameter, compact, where in self._split:
            _mover(parameter, compact, where)(parameter)
        kept = {id(parameter) for parameter in self.parameters}
        for parameter in self._network.parameters():
            if id(parameter) not in kept:
                parameter.grad = None

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of `optimizer`, made for `parameters`; held weights are not touched, gradients are gone after it."""
        if not self._lean:
            optimizer.step()
            for parameter, compact, where in self._split:
                put(parameter, where, compact)
            optimizer.zero_grad(set_to_none=True)
            return
        with self._one_by_one(optimizer) as step:
            for current in self.parameters:
                step(current)

    def step_in_backward(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        """The backward pass of `loss` and, for `lean` weights, a `step` of the same bits; the gradient's norm.

        A tensor moves as soon as its gradient is complete, which then goes. A graph that would still need the tensor
        raises RuntimeError, as autograd sees that it was written.
        """
        norms, moved = self.parameters[0].new_zeros(len(self.parameters)), set()
        tensors = {id(compact): parameter for parameter, compact, _ in self._split}
        hooks: list[torch.utils.hooks.RemovableHandle] = []
        with self._one_by_one(optimizer) as step:

            def mover(index: int, current: nn.Parameter) -> Callable[[Tensor], None]:
                def move(_: Tensor) -> None:
                    assert current.grad is not None and index not in moved, "a gradient came in parts"
                    moved.add(index)
                    norms[index] = torch._foreach_norm([current.grad])[0]
                    step(current)

                return move

            try:
                for index, current in enumerate(self.parameters):
                    tensor = tensors.get(id(current), current)  # its hooks run in order: the gradient has moved before
                    hooks.append(tensor.register_post_accumulate_grad_hook(mover(index, current)))
                loss.backward()
            finally:
                for hook in hooks:
                    hook.remove()
        return float(torch.linalg.vector_norm(norms))

    @contextmanager
    def _one_by_one(self, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[nn.Parameter], None]]:
        """A step of one parameter: state is kept by parameter, so the optimiser can be led through them."""
        (group,) = optimizer.param_groups
        split = {id(compact): (parameter, where) for parameter, compact, where in self._split}

        def step(current: nn.Parameter) -> None:
            group["params"] = [current]
            if id(current) in split and current.grad is not None:
                _step_on_loan(optimizer, current, *split[id(current)])
            else:
                optimizer.step()
            current.grad = None

        try:
            yield step
        finally:
            group["params"] = list(self.parameters)

    @torch.no_grad()
    def reread(self) -> None:
        """Take the values from the network, after a checkpoint was loaded into it."""
        if not self._lean:
            for parameter, compact, where in self._split:
                compact.copy_(taken(parameter, where))

    def release(self) -> None:
        """Give the network back as it was: gradients and hooks gone, `requires_grad` restored."""
        for hook in self._hooks:
            hook.remove()
        for name, parameter in self._network.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self._flags[name])


def _mover(parameter: nn.Parameter, compact: nn.Parameter, where: Tensor) -> Callable[[Tensor], None]:
    """Adds the free part of a parameter's gradient to that of its compact copy, and lets the gradient go."""

    def move(_: Tensor) -> None:
        if parameter.grad is None:
            return
        part = taken(parameter.grad, where)
        compact.grad = part if compact.grad is None else compact.grad.add_(part)
        parameter.grad = None

    return move


def _step_on_loan(
    optimizer: torch.optim.Optimizer, compact: nn.Parameter, parameter: nn.Parameter, where: Tensor
) -> None:
    """A step on one tensor, whose compact copy has values for no longer than that."""
    where, empty = opened(where, parameter), compact.data
    compact.data = taken(parameter, where)
    optimizer.step()
    put(parameter, where, compact)
    compact.data = empty


def _placeholder(selected: Tensor, like: Tensor) -> Tensor:
    """As many values as are selected, in the memory of one: what an optimiser and a gradient need to know of them."""
    return torch.zeros(1, dtype=like.dtype, device=like.device).expand(int(selected.sum()))


def _listed(selected: Tensor, like: Tensor) -> Tensor:
    """Positions where they can be used to write, which is faster than booleans."""
    return selected.reshape(-1).nonzero().flatten() if like.is_contiguous() else selected


def packed(selected: Tensor) -> Tensor:
    """Booleans as bits, eight in a byte."""
    flat = selected.reshape(-1)
    padded = nn.functional.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def opened(where: Tensor, tensor: Tensor) -> Tensor:
    """Bits as something to index `tensor` with; booleans and positions as they are."""
    if where.dtype != torch.uint8:
        return where
    bits = where[:, None] >> torch.arange(8, dtype=torch.uint8, device=where.device) & 1
    return _listed(bits.flatten()[: tensor.numel()].bool().view(tensor.shape), tensor)


def taken(tensor: Tensor, where: Tensor | None) -> Tensor:
    """A copy of the values of `tensor` at `where` (n,): booleans of its shape, positions, bits, or None for all."""
    if where is None:
        return tensor.clone()
    where = opened(where, tensor)
    return tensor.reshape(-1)[where.reshape(-1)]


def put(tensor: Tensor, where: Tensor | None, values: Tensor) -> None:
    """Write `values` as `taken` returned them back to `where` they came from."""
    if where is None:
        tensor.copy_(values)
        return
    where = opened(where, tensor)
    if where.dtype == torch.bool:
        tensor.masked_scatter_(where, values)
    else:
        tensor.view(-1).index_copy_(0, where, values)
