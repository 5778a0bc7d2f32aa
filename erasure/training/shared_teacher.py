"""Shared teacher: a frozen original in the student's own module, which keeps original values of trainable weights only.

`model.frozen()` is a second network. Frozen weights are the same in both, so it is enough to keep the trainable ones
and the buffers (running statistics). For a prediction the originals are put in place, the network runs in evaluation
mode without graph, and the student's values are put back, bit for bit.

Originals that fit into 16 bits without loss are kept so; many published checkpoints do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from erasure.formats.bits import packed
from erasure.models import Model
from erasure.saliency.mask import Mask
from erasure.training.masked_parameters import trainable_parts
from erasure.training.weight_positions import indexable, values_at, write_at


def shared_teacher(
    model: Model, mask: Mask | None = None, trains: Callable[[str], bool] = lambda name: True
) -> tuple[Model, SharedTeacher]:
    """A twin of `model` as it is now, and its network; its answers stay those of `model.frozen()`.

    To be made before the first step and before a checkpoint is loaded. Only weights that `mask` and `trains` leave free
    may move afterwards. The twin answers without graph: nothing can be differentiated through it.
    """
    twin = copy.copy(model)
    network: Any = SharedTeacher(model.network, mask, trains)
    twin.network = network
    return twin, network


class _Part:
    """One tensor that may move: `original` values while the student is in place, `student` values while it is not."""

    def __init__(self, tensor: Tensor, where: Tensor | None) -> None:
        self._tensor, self._where = tensor, where
        values = values_at(tensor.data, where)
        self._kept_as = _shortest(values)
        self.original: Tensor | None = values.to(self._kept_as)
        self.student: Tensor | None = None

    def bring(self) -> None:
        """Put the original in place. The student's values are safe before anything is written."""
        data, where = self._data()
        self.student = values_at(data, where)
        assert self.original is not None
        write_at(data, where, self.original.to(data.dtype))
        self.original = None

    def restore(self) -> None:
        """Put the student back; nothing happens when it is in place."""
        if self.student is None:
            return
        data, where = self._data()
        if self.original is None:
            self.original = values_at(data, where).to(self._kept_as)
        write_at(data, where, self.student)
        self.student = None

    def _data(self) -> tuple[Tensor, Tensor | None]:
        """The values, out of autograd's sight, which need not know of what is put back before it looks; and where."""
        return self._tensor.data, None if self._where is None else indexable(self._where, self._tensor)

    @property
    def nbytes(self) -> int:
        """Bytes held between two answers."""
        return sum(part.nbytes for part in (self.original, self._where) if part is not None)


class SharedTeacher:
    """Called as the network is, it answers as the network would have when this was made.

    It is no module of its own: beside the call it has what a model family asks of a network, `config`, `dtype`,
    `device`, `parameters()` (the student's: where they are, not what) and a mode that is always evaluation.
    """

    training = False

    def __init__(
        self, network: nn.Module, mask: Mask | None = None, trains: Callable[[str], bool] = lambda name: True
    ) -> None:
        self._network = network
        self._parts = [
            _Part(parameter, None if selected is None else packed(selected))
            for _, parameter, selected in trainable_parts(network, mask, trains)
        ]
        self._parts += [_Part(buffer, None) for buffer in network.buffers()]

    @property
    def nbytes(self) -> int:
        """Bytes it holds between two answers."""
        return sum(part.nbytes for part in self._parts)

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self._network.config

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of its weights."""
        return next(self.parameters()).dtype

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the shared module."""
        return self._network.parameters()

    def train(self, mode: bool = True) -> SharedTeacher:
        """Nothing: it is always in evaluation mode."""
        return self

    def eval(self) -> SharedTeacher:
        """Nothing: it is always in evaluation mode."""
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network would have answered, without graph."""
        with torch.no_grad(), self.original():
            return self._network._call_impl(*args, **kwargs)  # never the compiled call, as in a frozen copy

    @contextmanager
    def original(self) -> Iterator[nn.Module]:
        """The shared module as it was, in evaluation mode, until the block is left, however it is left."""
        modes = [(module, module.training) for module in self._network.modules()]
        try:
            self._network.eval()
            for part in self._parts:
                part.bring()
            torch.clear_autocast_cache()  # it knows tensors, not their values
            yield self._network
        finally:
            for part in self._parts:
                part.restore()
            for module, mode in modes:
                module.training = mode
            torch.clear_autocast_cache()


def _shortest(values: Tensor) -> torch.dtype:
    """A 16-bit format if that holds every one of `values` exactly, else their own."""
    if values.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            if values.to(dtype).to(torch.float32).view(torch.int32).equal(values.view(torch.int32)):
                return dtype
    return values.dtype
