"""speed: edit value matrices in the null space of the retained keys (Li et al., 2026).

SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models (https://arxiv.org/abs/2503.07392).
dW = W (sum c_anchor c^T - sum c c^T) P [I - M K (K^T P M K + lambda I)^-1 K^T P] M, M = (sum c c^T P + alpha I)^-1,
which is the minimum over D = D P of sum |(W + D) c - W c_anchor|^2 + alpha |D|^2 with D K = 0, or with |D K|^2 / lambda
added where lambda is above 0. P projects on the eigenvectors, with values below the threshold, of the mean of c c^T
over retained keys; K is the start token and three centres of the empty prompt's tokens. We solve it in the coordinates
of P, where it is one symmetric system. Of the retained keys only those count that an edit without constraint moves by
more than their mean (prior filtering); noisy copies of them (directed augmentation) lie along the direction v that
W answers least, and enter as their expectation, v v^T, so that nothing is drawn.
We depart from the authors' code in that sums over concepts are sums, as in the paper, not means; that noisy copies are
not filtered again; that one filter serves all matrices, by what it moves in all of them; and that every word of a
retained prompt is kept, not its last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.core.logging import log_warning
from erasure.data.task import Task
from erasure.methods.cross_attention.closed_form import ClosedForm, Edit, in_range, shares, solved, squares
from erasure.methods.cross_attention.keys import CHUNK, Keys


@dataclass(frozen=True, kw_only=True)
class SPEED(ClosedForm):
    """One edit, solved for each matrix by itself."""

    parts: ClassVar[tuple[str, ...]] = ("to_v",)

    threshold: Annotated[float, "largest eigenvalue of the retained keys' mean square that counts as zero"] = 0.1
    ridge: Annotated[float, "alpha: weight of the squared change"] = 1.0
    equality: Annotated[float, "lambda: how softly the start token and the empty prompt are kept; 0: exactly"] = 0.0
    centers: Annotated[int, "centres of the empty prompt's tokens that are kept"] = 3
    filter: Annotated[bool, "retain only keys that an edit without constraint changes by more than the mean"] = True
    augment: Annotated[int, "noisy copies of each retained key"] = 10

    def check(self, task: Task) -> None:
        """Raise OptionError for a weight or count outside its range."""
        in_range("--threshold", self.threshold, above=True)
        in_range("--ridge", self.ridge, above=True)
        in_range("--equality", self.equality)
        if min(self.centers, self.augment) < 0:
            raise OptionError("--centers and --augment must be at least 0")

    def edits(self, originals: Sequence[Tensor], keys: Keys) -> Iterator[tuple[Edit, dict[str, float]]]:
        """The only edit; `free` is the fewest directions left to a matrix. One without any stays, which is told."""
        held = torch.cat([keys.null[:1], centers_of(keys.null[1:], self.centers)])
        before = squares(originals)
        kept = self.kept(before, keys)
        crossed, after = torch.zeros_like(before), torch.zeros_like(before)
        found: dict[str, float] = {"free": len(before)}

        def edit(matrix: Tensor) -> Tensor:
            basis = self.null_space(matrix, kept)
            edited = matrix + self.change(matrix, keys, basis, held)
            crossed.add_(edited.T @ matrix)
            after.add_(edited.T @ edited)
            if not basis.shape[1] and found["free"]:
                log_warning(
                    "what is kept leaves some matrices no direction to move in, and they stay as they are: "
                    "raise --threshold, or retain fewer prompts"
                )
            found["free"] = min(found["free"], basis.shape[1])
            found.update(shares(before, crossed, after, keys))
            return edited

        yield edit, found

    def null_space(self, matrix: Tensor, kept: Tensor) -> Tensor:
        """An orthonormal basis (d, k) of the directions that the mean of c c^T, `kept`, leaves free for `matrix`."""
        if self.augment:
            least = least_direction(matrix)
            kept = kept + self.augment / (1 + self.augment) * torch.outer(least, least)
        values, vectors = torch.linalg.eigh(kept)
        return vectors[:, values < self.threshold]

    def kept(self, before: Tensor, keys: Keys) -> Tensor:
        """The mean of c c^T (d, d) over the retained keys that count; `before` is the sum of W0^T W0 over matrices."""
        if not self.filter:
            return keys.gram / len(keys.retain)
        unit = torch.eye(len(before), dtype=torch.float64)
        concept, between, _ = keys.squares
        free = solved(self.ridge * unit + concept, between - concept)[0]  # the change as W0 (free transposed)
        size = free @ before @ free.T
        moved = torch.cat([((part @ size) * part).sum(1) for part in keys.chunks()]).clamp(min=0).sqrt()
        chosen = moved >= moved.mean()
        parts = zip(keys.chunks(), chosen.split(CHUNK), strict=True)
        return sum((part[mine].T @ part[mine] for part, mine in parts), torch.zeros(())) / int(chosen.sum())

    def change(self, matrix: Tensor, keys: Keys, basis: Tensor, held: Tensor) -> Tensor:
        """dW (out, d) of `matrix` (out, d), within `basis` (d, k), that leaves the keys `held` (h, d) as they are."""
        if not self.equality and basis.shape[1]:
            left, sizes, _ = torch.linalg.svd(basis.T @ held.T)
            basis = basis @ left[:, int((sizes > 1e-10 * held.norm()).sum()) :]
        if not basis.shape[1]:
            return torch.zeros_like(matrix)
        concept, between, _ = keys.squares
        system = basis.T @ concept @ basis + self.ridge * torch.eye(basis.shape[1], dtype=torch.float64)
        if self.equality:
            soft = held @ basis
            system = system + soft.T @ soft / self.equality
        solution, _ = solved(system, basis.T @ (between - concept))
        return matrix @ solution.T @ basis.T


def least_direction(matrix: Tensor) -> Tensor:
    """The right singular vector (d,) of `matrix` (out, d) with the smallest of its min(out, d) singular values."""
    rows, columns = matrix.shape
    if rows >= columns:
        return torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, 0]
    return torch.nn.functional.normalize(matrix.T @ torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, 0], dim=0)


def centers_of(points: Tensor, count: int) -> Tensor:
    """At most `count` centres (k, d) of `points` (n, d): k-means from points far from each other, nothing drawn."""
    if not count:
        return points[:0]
    centers = points[:1]
    while len(centers) < count:
        far = torch.cdist(points, centers).amin(1)
        if float(far.max()) <= 1e-6 * float(points.norm(dim=1).max()):
            break
        centers = torch.cat([centers, points[far.argmax()][None]])
    for _ in range(100):
        nearest = torch.cdist(points, centers).argmin(1)
        own = [points[nearest == i] for i in range(len(centers))]
        means = torch.stack([part.mean(0) if len(part) else center for part, center in zip(own, centers, strict=True)])
        if means.equal(centers):
            break
        centers = means
    return centers
