"""Cross-attention maps: how much each place of an image attends to each word of its prompt.

A map is softmax(Q K^T / sqrt(d)) of one head of one layer. Hooks record queries and keys, and maps are computed from
them on request: the network runs unchanged, with its own fast attention, and can be differentiated through its maps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

LAYER = "attn2"  # what diffusers calls the cross-attention of a UNet's block


def cross_attentions(network: nn.Module) -> dict[str, Any]:
    """The layers that read the prompt, by name; empty where there are none."""
    return {name: module for name, module in network.named_modules() if name.rpartition(".")[2] == LAYER}


class AttentionMaps:
    """The maps of a network's last forward pass, while the block lasts; its hooks are removed afterwards."""

    def __init__(self, network: nn.Module) -> None:
        self.layers = cross_attentions(network)
        self._caught: dict[tuple[str, str], Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, layer in self.layers.items():
            for part in ("to_q", "to_k"):
                catch = functools.partial(self._catch, (name, part))
                self._hooks.append(getattr(layer, part).register_forward_hook(catch))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._caught.clear()

    def _catch(self, key: tuple[str, str], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._caught[key] = output

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """The name and the maps (b, heads, places, tokens), float32, of each layer that has been asked."""
        for name, layer in self.layers.items():
            if (name, "to_k") not in self._caught:
                continue
            queries, keys = (
                self._caught[name, part].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in ("to_q", "to_k")
            )
            yield name, (queries.float() @ keys.float().transpose(-1, -2) * layer.scale).softmax(-1)

    def squares(self, words: Tensor, region: Tensor | None = None) -> Tensor:
        """The squared maps of `words` (b, tokens), booleans, summed over layers and places, a head's mean: (b,).

        `region` (b, height, width), booleans, leaves other places out; it is brought to each layer's size.
        """
        found: list[Tensor] = []
        for _, maps in self.items():
            seen = (maps.square() * words[:, None, None].to(maps)).sum(-1).mean(1)  # (b, places)
            if region is not None:
                seen = seen * resized(region.to(seen), size_of(seen.shape[1], region.shape)).flatten(1)
            found.append(seen.sum(1))
        return torch.stack(found).sum(0)

    @torch.no_grad()
    def mean(self, words: Tensor, size: tuple[int, int]) -> Tensor:
        """How much each place looks at `words` (b, tokens), booleans: a mean over heads and layers, (b, *size)."""
        total, count = torch.zeros((len(words), *size), device=words.device), 0
        for _, maps in self.items():
            seen = (maps * words[:, None, None].to(maps)).sum(-1).mean(1)
            total += resized(seen.unflatten(1, size_of(seen.shape[1], total.shape)), size)
            count += 1
        return total / max(1, count)


def size_of(places: int, shape: torch.Size) -> tuple[int, int]:
    """(height, width) of a layer with so many `places`, of images shaped (..., height, width)."""
    height = max(1, round(math.sqrt(places * shape[-2] / shape[-1])))
    return height, places // height


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (b, h, w) at another size; each value is that of the nearest place."""
    return nn.functional.interpolate(images[:, None], size=size, mode="nearest-exact")[:, 0]
