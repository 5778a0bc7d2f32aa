"""arcane: one one-class model for each class, trained block after block (Yan et al., 2022).

A request touches the models of its classes alone, and forgetting a whole class drops its model and trains nothing. The
one-class model is an autoencoder: an image belongs to the class whose model reconstructs it best (novelty detection by
reconstruction error, Japkowicz et al., 1995). Squared errors per pixel can be compared across models without
calibration, distances to a learned centre cannot. No model sees a sample of another class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.errors import OptionError
from erasure.data import Batch, Dataset
from erasure.data.images import to_float
from erasure.exact.base import DataInfo, ExactMethod, Learner


class _Autoencoder(Learner):
    def __init__(self, pixels: int, hidden: int, code: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network: Any = nn.Sequential(
                nn.Linear(pixels, hidden),
                nn.GELU(),
                nn.Linear(hidden, code),
                nn.Linear(code, hidden),
                nn.GELU(),
                nn.Linear(hidden, pixels),
            )

    def per_sample_loss(self, images: Tensor) -> Tensor:
        """Squared error of the reconstructed image, mean over pixels, (n,)."""
        flat = images.flatten(1).to(self.network[0].weight.device)
        return (self.network(flat) - flat).square().mean(1)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.per_sample_loss(batch.images).mean()

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        return -torch.cat([self.per_sample_loss(part).cpu() for part in images.split(1024)])


@dataclass(frozen=True)
class Arcane(ExactMethod):
    """Classes of samples, an autoencoder on each."""

    kind = "class"
    crops = False

    hidden: Annotated[int, "width of each class's autoencoder"] = 128
    code: Annotated[int, "size of the code that an image is compressed to"] = 12
    selection: Annotated[
        Literal["none", "entropy"],
        "train on all samples, or on those of largest joint entropy (chosen once, then fixed)",
    ] = "none"
    keep: Annotated[float, "share of each class that --selection entropy keeps"] = 0.5

    def check(self, dataset: Dataset) -> None:
        """Also check the widths and the share that --selection keeps."""
        super().check(dataset)
        if min(self.hidden, self.code) < 1 or not 0 < self.keep <= 1:
            raise OptionError("--hidden and --code must be at least 1, --keep must lie in (0, 1]")

    def chosen(self, dataset: Dataset) -> np.ndarray:
        """All samples, or the representatives of each class."""
        if self.selection == "none":
            return super().chosen(dataset)
        kept = []
        for label in range(len(dataset.class_names)):
            ids = np.flatnonzero(dataset.labels == label)
            count = max(1, round(self.keep * len(ids)))
            kept.append(ids[representatives(to_float(dataset.images[ids]).flatten(1).double().numpy(), count)])
        return np.sort(np.concatenate(kept))

    def num_units(self, num_classes: int) -> int:
        """One a class."""
        return num_classes

    def unit_of(self, sample: int, label: int, seed: int) -> int:
        """The class itself."""
        return label

    def learner(self, info: DataInfo, seed: int) -> Learner:
        """An autoencoder, the same architecture for every class."""
        return _Autoencoder(info.channels * info.image_size**2, self.hidden, self.code, seed)

    def combined(self, units: Sequence[int], scores: Sequence[Tensor], num_classes: int) -> Tensor:
        """Minus each model's squared error; minus infinity for a class that was forgotten."""
        found = torch.full((len(scores[0]), num_classes), -torch.inf)
        found[:, list(units)] = torch.stack(list(scores), 1)
        return found


NOISE = 1e-2  # variance of the noise: copies of one image add next to nothing, and no pivot is zero


def kernel(points: np.ndarray) -> np.ndarray:
    """Gaussian kernel (n, n) of points (n, d) in [-1, 1], plus noise; its width depends on d alone."""
    squares = (points**2).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0.0)
    return np.exp(-distances / (0.5 * points.shape[1])) + NOISE * np.eye(len(points))


def representatives(points: np.ndarray, count: int) -> np.ndarray:
    """Positions (count,), in order, of a greedily chosen subset of `points` (n, d) with a large joint entropy.

    Of equal gains the first position wins.
    """
    matrix = kernel(points)
    variance = matrix.diagonal().copy()  # of each point, given those chosen so far
    rows = np.empty((count, len(points)))
    chosen: list[int] = []
    for i in range(count):
        best = int(np.argmax(variance))
        row = (matrix[best] - rows[:i, best] @ rows[:i]) / np.sqrt(variance[best])
        rows[i] = row
        variance -= row**2
        chosen.append(best)
        variance[chosen] = -np.inf
    return np.sort(np.array(chosen, dtype=np.int64))
