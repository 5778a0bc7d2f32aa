"""The weights an optimiser may move, and no others.

A tensor that the mask splits is represented by a compact copy of its free weights: the optimiser keeps state for those
alone, and whatever it does to them (momentum, weight decay, noise), the held weights of the network are never written.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from erasure.errors import OptionError
from erasure.mask import Mask

LISTED = 1 << 25  # networks of more weights keep one byte a weight in place of eight a free weight


class FreeWeights:
    """`parameters` for an optimiser; `collect` brings gradients to them and `spread` brings their values back."""

    def __init__(
        self,
        network: nn.Module,
        mask: Mask | None = None,
        trains: Callable[[str], bool] = lambda name: True,
        *,
        norm_over_all: bool = False,
    ) -> None:
        """Free are the weights that `trains` admits by name and `mask` by position.

        Tensors without any free weight stop asking for a gradient, unless `norm_over_all` needs theirs for its norm.
        """
        self._network = network
        self._flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        self._split: list[tuple[nn.Parameter, nn.Parameter, Tensor]] = []
        listed = sum(parameter.numel() for parameter in network.parameters()) <= LISTED
        self._norm_only: list[nn.Parameter] = []
        self.parameters: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            selected = mask.tensors[name].to(parameter.device) if mask is not None else None
            if not trains(name) or (selected is not None and not bool(selected.any())):
                parameter.requires_grad_(norm_over_all and trains(name))
                if parameter.requires_grad:
                    self._norm_only.append(parameter)
            elif selected is None or bool(selected.all()):
                parameter.requires_grad_(True)
                self.parameters.append(parameter)
            else:
                compact = nn.Parameter(parameter.detach()[selected].clone())
                self.parameters.append(compact)
                parameter.requires_grad_(True)
                fast = listed and parameter.is_contiguous()
                self._split.append((parameter, compact, selected.reshape(-1).nonzero().flatten() if fast else selected))
        if not self.parameters:
            self.release()
            raise OptionError("no weight may move: the mask and the choice of weights leave nothing to train")

    @torch.no_grad()
    def collect(self) -> None:
        """Move the free part of each gradient to the optimiser's parameters."""
        for parameter in self._norm_only:
            parameter.grad = None
        for parameter, compact, where in self._split:
            compact.grad = None if parameter.grad is None else _taken(parameter.grad, where)
            parameter.grad = None

    @torch.no_grad()
    def spread(self) -> None:
        """Write the optimiser's values into the network; held weights are not touched."""
        for parameter, compact, where in self._split:
            if where.dtype == torch.bool:
                parameter.masked_scatter_(where, compact)
            else:
                parameter.view(-1).index_copy_(0, where, compact)

    @torch.no_grad()
    def reread(self) -> None:
        """Take the values from the network, after a checkpoint was loaded into it."""
        for parameter, compact, where in self._split:
            compact.copy_(_taken(parameter, where))

    def release(self) -> None:
        """Give the network back as it was: gradients gone, `requires_grad` restored."""
        for name, parameter in self._network.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self._flags[name])


def _taken(tensor: Tensor, where: Tensor) -> Tensor:
    """The values of `tensor` at `where`: booleans of its shape, or positions in it."""
    return tensor[where] if where.dtype == torch.bool else tensor.reshape(-1)[where]
