"""The official SalUn algorithm for DDPMs, written straightforwardly: the yardstick of step.py, and of a test.

Each step: one pass with the retain batch (squared error summed over pixels), one with the forget batch, one of the same
moving network for the pseudo-target with its graph built and then cut, an int64 mask multiplied into every gradient
after clipping, Adam over all weights. Nothing of the package's machinery is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StepDraws:
    """Noised forget and retain images, timesteps and labels (after condition drop) of one step."""

    forget: Tensor
    forget_timesteps: Tensor
    forget_labels: Tensor
    pseudo_labels: Tensor
    retain: Tensor
    retain_noise: Tensor
    retain_timesteps: Tensor
    retain_labels: Tensor


class OfficialSalUn:
    """The loop's state: the network, its int64 mask, Adam."""

    def __init__(
        self, network: Any, mask: Mapping[str, Tensor], learning_rate: float = 1e-4, alpha: float = 1e-3
    ) -> None:
        self.network, self.alpha = network, alpha
        self.mask = {name: tensor.to(torch.int64) for name, tensor in mask.items()}
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    def step(self, draws: StepDraws) -> float:
        """One update; returns the loss."""
        predicted = self.network(draws.retain, draws.retain_timesteps, class_labels=draws.retain_labels).sample
        retain_loss = (draws.retain_noise - predicted).square().sum(dim=(1, 2, 3)).mean()
        output = self.network(draws.forget, draws.forget_timesteps, class_labels=draws.forget_labels).sample
        pseudo = self.network(draws.forget, draws.forget_timesteps, class_labels=draws.pseudo_labels).sample.detach()
        loss = nn.functional.mse_loss(output, pseudo) + self.alpha * retain_loss
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for name, parameter in self.network.named_parameters():
            if parameter.grad is not None:
                parameter.grad *= self.mask[name]
        self.optimizer.step()
        return float(loss.detach())


def official_mask(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """The official mask: all scores concatenated, argsorted twice for the ranks, stored as int64."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    threshold = int(len(flat) * density)
    positions = torch.argsort(-flat)
    ranks = torch.argsort(positions)
    start, found = 0, {}
    for name, score in scores.items():
        own = ranks[start : start + score.numel()].reshape(score.shape)
        found[name] = (own < threshold).to(torch.int64)
        start += score.numel()
    return found
