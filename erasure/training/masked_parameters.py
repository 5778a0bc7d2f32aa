"""Masked parameters: what a mask does to gradients, optimiser state, weight decay and weights during training.

A weight is trainable where `trains` admits its tensor by name and the mask selects its position; every other weight is
frozen. A tensor without trainable weights gets no gradient. A tensor whose weights are all trainable is given to the
optimiser as it is. A tensor that the mask splits is given to it as a compact copy of its trainable weights, so that

    gradient         its trainable part moves to the copy when the backward pass has produced it, the rest is freed
    norm, clipping   are over trainable weights, or with `clip_before_mask` over whole tensors
    optimiser state  exists for trainable weights alone
    weight decay     acts on the copy, so frozen weights do not decay
    weights          the copy is written to the trainable positions after each step; frozen positions are never written

Whatever an optimiser does (momentum, weight decay, noise), frozen weights therefore keep their bits.

Memory: gradients of the whole network never exist at once. With `lean` the values of the copies exist for one tensor at
a time, while the optimiser works on it. Where nothing needs all gradients together, `step_in_backward` frees each
gradient as soon as its tensor has been updated (Lv et al., 2023, "LOMO").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from erasure.core.errors import OptionError
from erasure.formats.bits import packed
from erasure.saliency.mask import Mask
from erasure.training.weight_positions import as_indices, indexable, values_at, write_at

MAX_INDEXED = 1 << 25  # larger networks keep one byte per weight in place of eight per trainable weight


class TrainablePart(NamedTuple):
    """A tensor with trainable weights; `selected` marks them, booleans in its shape; None: all of them."""

    name: str
    parameter: nn.Parameter
    selected: Tensor | None


def trainable_parts(
    network: nn.Module, mask: Mask | None = None, trains: Callable[[str], bool] = lambda name: True
) -> Iterator[TrainablePart]:
    """Yield every tensor of `network` in which `trains` (by name) and `mask` (by position) leave a weight trainable."""
    for name, parameter in network.named_parameters():
        selected = mask.tensors[name].to(parameter.device) if mask is not None else None
        if not trains(name) or (selected is not None and not bool(selected.any())):
            continue
        yield TrainablePart(name, parameter, None if selected is None or bool(selected.all()) else selected)


class MaskedParameters:
    """The trainable weights of a network: `parameters` for an optimiser, and a step of it.

    After a backward pass: `average_gradients` over processes, `clip`, `step`. Then `release`, when training is over.
    """

    def __init__(
        self,
        network: nn.Module,
        mask: Mask | None = None,
        trains: Callable[[str], bool] = lambda name: True,
        *,
        clip_before_mask: bool = False,
        lean: bool = False,
    ) -> None:
        """Take over gradients of `network`; tensors without trainable weights no longer require one.

        Args:
            network: The network to train.
            mask: Trainable weights by position; None: all.
            trains: Trainable tensors by name.
            clip_before_mask: Keep whole gradients until `clip`, whose norm is then over all tensors of `trains`.
            lean: The same bits in less memory and more time.

        Raises:
            MaskError: The mask was made for another network.
            OptionError: No weight is trainable.
        """
        if mask is not None:
            mask.check(network)
        self._network, self._lean, self._clip_before_mask = network, lean, clip_before_mask
        self._required_grad = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        self._split: list[_SplitTensor] = []
        self.parameters: list[nn.Parameter] = []
        indexed = sum(parameter.numel() for parameter in network.parameters()) <= MAX_INDEXED
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(clip_before_mask and trains(name))
        for _, parameter, selected in trainable_parts(network, mask, trains):
            parameter.requires_grad_(True)
            if selected is None:
                self.parameters.append(parameter)
                continue
            split = _SplitTensor(parameter, selected, lean=lean, indexed=indexed)
            self._split.append(split)
            self.parameters.append(split.compact)
            if not clip_before_mask:
                split.take_gradients()
        if not self.parameters:
            self.release()
            raise OptionError("no weight is trainable: the mask and --weights leave nothing to train")

    @property
    def _with_gradients(self) -> list[nn.Parameter]:
        """The parameters that have gradients after a backward pass."""
        return list(self._network.parameters()) if self._clip_before_mask else self.parameters

    def average_gradients(self) -> None:
        """Average gradients over all processes."""
        for parameter in self._with_gradients:
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")

    @torch.no_grad()
    def clip(self, max_norm: float) -> float:
        """Scale gradients down to `max_norm` (inf: not at all) and drop those of frozen weights; the norm before."""
        norm = float(nn.utils.clip_grad_norm_(self._with_gradients, max_norm))
        if self._clip_before_mask:
            for split in self._split:
                split.move_gradient()
            trainable = {id(parameter) for parameter in self.parameters}
            for parameter in self._network.parameters():
                if id(parameter) not in trainable:
                    parameter.grad = None
        return norm

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make one step of `optimizer`, which was made for `parameters`, and free the gradients."""
        if not self._lean:
            optimizer.step()
            for split in self._split:
                split.write_network()
            optimizer.zero_grad(set_to_none=True)
            return
        with self._one_by_one(optimizer) as step:
            for parameter in self.parameters:
                step(parameter)

    def step_in_backward(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        """Run the backward pass of `loss` and step each `lean` tensor within it, to the same bits; the gradient's norm.

        A tensor is updated, and its gradient freed, as soon as the gradient is complete. Raises RuntimeError (autograd)
        where the graph still needs a tensor that was updated.
        """
        norms, updated = self.parameters[0].new_zeros(len(self.parameters)), set()
        tensors = {id(split.compact): split.parameter for split in self._split}
        hooks: list[torch.utils.hooks.RemovableHandle] = []
        with self._one_by_one(optimizer) as step:

            def updater(index: int, parameter: nn.Parameter) -> Callable[[Tensor], None]:
                def update(_: Tensor) -> None:
                    assert parameter.grad is not None and index not in updated, "a gradient came in parts"
                    updated.add(index)
                    norms[index] = torch._foreach_norm([parameter.grad])[0]
                    step(parameter)

                return update

            try:
                for index, parameter in enumerate(self.parameters):
                    tensor = tensors.get(id(parameter), parameter)  # its hooks run in order: first to the compact copy
                    hooks.append(tensor.register_post_accumulate_grad_hook(updater(index, parameter)))
                loss.backward()
            finally:
                for hook in hooks:
                    hook.remove()
        return float(torch.linalg.vector_norm(norms))

    @contextmanager
    def _one_by_one(self, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[nn.Parameter], None]]:
        """Yield a step of one parameter alone; an optimiser keeps its state by parameter, so that changes no bit."""
        (group,) = optimizer.param_groups
        splits = {id(split.compact): split for split in self._split}

        def step(parameter: nn.Parameter) -> None:
            group["params"] = [parameter]
            if id(parameter) in splits and parameter.grad is not None:
                splits[id(parameter)].step_with_values(optimizer)
            else:
                optimizer.step()
            parameter.grad = None

        try:
            yield step
        finally:
            group["params"] = list(self.parameters)

    @torch.no_grad()
    def read_network(self) -> None:
        """Take the network's current weights into the copies, after they were changed by something else."""
        if not self._lean:
            for split in self._split:
                split.read_network()

    def release(self) -> None:
        """Give the network back as it was: no gradients, no hooks, and `requires_grad` restored."""
        for split in self._split:
            split.release_gradients()
        for name, parameter in self._network.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self._required_grad[name])


class _SplitTensor:
    """A tensor `parameter` with trainable and frozen weights, and `compact` (n,), a copy of the trainable ones.

    With `lean` the copy has its values within `step_with_values` only, and positions are packed as bits.
    """

    def __init__(self, parameter: nn.Parameter, selected: Tensor, *, lean: bool, indexed: bool) -> None:
        self.parameter = parameter
        self.compact = nn.Parameter(_placeholder(selected, parameter) if lean else values_at(parameter.data, selected))
        self._where = packed(selected) if lean else as_indices(selected, parameter) if indexed else selected
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def take_gradients(self) -> None:
        """From now on, move gradients to the copy as the backward pass produces them."""
        self._hook = self.parameter.register_post_accumulate_grad_hook(lambda _: self.move_gradient())

    def release_gradients(self) -> None:
        """Leave gradients with the tensor again."""
        if self._hook is not None:
            self._hook.remove()

    def move_gradient(self) -> None:
        """Add the trainable part of the gradient to the copy's, and free it."""
        if self.parameter.grad is None:
            return
        part = values_at(self.parameter.grad, self._where)
        self.compact.grad = part if self.compact.grad is None else self.compact.grad.add_(part)
        self.parameter.grad = None

    def write_network(self) -> None:
        """Write the copy to the trainable positions of the tensor; frozen ones are not touched."""
        write_at(self.parameter, self._where, self.compact)

    def read_network(self) -> None:
        """Read the copy from the tensor."""
        self.compact.copy_(values_at(self.parameter, self._where))

    def step_with_values(self, optimizer: torch.optim.Optimizer) -> None:
        """Make a step of `optimizer` on the copy, which has its values for no longer than that."""
        where, empty = indexable(self._where, self.parameter), self.compact.data
        self.compact.data = values_at(self.parameter, where)
        optimizer.step()
        write_at(self.parameter, where, self.compact)
        self.compact.data = empty


def _placeholder(selected: Tensor, like: Tensor) -> Tensor:
    """A tensor of as many values as are selected in the memory of one, for an optimiser that reads only its shape."""
    return torch.zeros(1, dtype=like.dtype, device=like.device).expand(int(selected.sum()))
