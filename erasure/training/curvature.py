"""Curvature of a loss: per-sample gradients, Hessian and Fisher products, and linear systems with them.

The trainable weights of a network are one vector, and the losses of some samples a function of it, in evaluation mode.
All products are sums over batches, so memory has no more than a few such vectors, and use double reverse-mode
differentiation, which every family supports. Systems are solved by conjugate gradients (Hestenes and Stiefel, 1952).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from erasure.core.rng import derive_seed
from erasure.data import Batch, Dataset
from erasure.models import Examples, Model
from erasure.saliency.mask import Mask
from erasure.training.masked_parameters import trainable_parts
from erasure.training.weight_positions import values_at, write_at

KEPT_BYTES = 1 << 30  # per-sample gradients up to this size are kept, larger ones are computed for each product
SUMMED_AT_ONCE = 1 << 26  # numbers of per-sample gradients that are summed at once
CHUNK = 1 << 24  # numbers that a dot product converts to float64 at once

Curvature = Literal["woodfisher", "hessian"]
Product = Callable[[Tensor], Tensor]


class WeightSpace:
    """The trainable weights of a network, by `mask` and `trains`, as one vector (size,)."""

    def __init__(
        self, network: nn.Module, mask: Mask | None = None, trains: Callable[[str], bool] = lambda name: True
    ) -> None:
        self.parts = list(trainable_parts(network, mask, trains))
        self.lengths = [int(p.parameter.numel() if p.selected is None else p.selected.sum()) for p in self.parts]
        self.size = sum(self.lengths)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The tensors that have trainable weights."""
        return [part.parameter for part in self.parts]

    def vector(self, tensors: Sequence[Tensor]) -> Tensor:
        """The trainable part of `tensors`, shaped as `parameters`, as one vector (size,)."""
        return torch.cat(
            [values_at(t.detach(), part.selected).reshape(-1) for t, part in zip(tensors, self.parts, strict=True)]
        )

    def tensors(self, vector: Tensor) -> list[Tensor]:
        """`vector` (size,) in the shapes of `parameters`, zero where a weight is frozen."""
        found = []
        for values, part in zip(vector.split(self.lengths), self.parts, strict=True):
            tensor = torch.zeros_like(part.parameter, dtype=vector.dtype)
            write_at(tensor, part.selected, values if part.selected is not None else values.view(tensor.shape))
            found.append(tensor.detach())
        return found

    def zeros(self) -> Tensor:
        """A vector of zeros (size,)."""
        return torch.zeros(self.size, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    def values(self) -> Tensor:
        """A copy of the trainable weights."""
        return self.vector(self.parameters)

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Give the trainable weights these `values` (size,); frozen weights are not touched."""
        for part, own in zip(self.parts, values.split(self.lengths), strict=True):
            write_at(
                part.parameter, part.selected, own if part.selected is not None else own.view(part.parameter.shape)
            )


class SampleLosses:
    """The loss of each of some samples of `dataset`, as a function of the weights of `space`.

    `chosen` are their positions; None: all. Random inputs of a loss (noise, timesteps) are drawn once for each sample,
    by `seed`, so every call uses the same ones.
    """

    def __init__(
        self,
        model: Model,
        space: WeightSpace,
        dataset: Dataset,
        seed: int,
        *,
        chosen: np.ndarray | None = None,
        batch_size: int = 256,
    ) -> None:
        self.model, self.space, self.dataset, self.seed = model, space, dataset, seed
        self.chosen = np.arange(len(dataset)) if chosen is None else chosen
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.chosen)

    def values(self) -> Tensor:
        """The losses, (n,)."""
        with torch.no_grad():
            return torch.cat([self.model.per_sample_loss(examples) for examples, _ in self._batches()])

    def gradient(self, weights: Tensor | None = None) -> Tensor:
        """(1/n) sum_i w_i g_i, (size,), with `weights` w (n,), or all 1."""
        total = self.space.zeros()
        for examples, where in self._batches():
            errors = self.model.per_sample_loss(examples)
            loss = (errors if weights is None else errors * weights[where]).sum()
            total += self._derivative(loss)
        return total / len(self)

    def products(self, vector: Tensor) -> Tensor:
        """g_i . v of each sample, (n,): a Jacobian-vector product of the losses."""
        return torch.cat(
            [self._jvp(self.model.per_sample_loss(examples), vector)[0] for examples, _ in self._batches()]
        )

    def hessian_product(self, vector: Tensor) -> Tensor:
        """H v, (size,), with H the mean Hessian."""
        total = self.space.zeros()
        for examples, _ in self._batches():
            slope = self._slope(self.model.per_sample_loss(examples).sum(), vector)
            total += self._derivative(slope)
        return total / len(self)

    def fisher_product(self, vector: Tensor) -> Tensor:
        """(1/n) sum_i g_i (g_i . v), (size,)."""
        total = self.space.zeros()
        for examples, _ in self._batches():
            errors = self.model.per_sample_loss(examples)
            products, _ = self._jvp(errors, vector)
            total += self._derivative((errors * products).sum())
        return total / len(self)

    def gradients(self, chunk: int = 64) -> Iterator[Tensor]:
        """The gradient of each sample, (n, size), in blocks of rows."""
        names = [f"network.{part.name}" for part in self.space.parts]
        module = _PerSample(self.model)
        weights = dict(zip(names, (p.detach() for p in self.space.parameters), strict=True))

        def loss(weights: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor, weight: Tensor) -> Tensor:
            example = Examples(tuple(value[None] for value in inputs), target[None], weight[None])
            return functional_call(module, weights, (example,))[0]

        each = vmap(grad(loss), (None, 0, 0, 0), chunk_size=chunk)
        for examples, _ in self._batches():
            found = each(weights, *examples)
            yield torch.cat(
                [_rows(found[name], part.selected) for name, part in zip(names, self.space.parts, strict=True)], 1
            )

    def _derivative(self, value: Tensor) -> Tensor:
        return self.space.vector(torch.autograd.grad(value, self.space.parameters, materialize_grads=True))

    def _slope(self, value: Tensor, vector: Tensor) -> Tensor:
        """The derivative of `value` along `vector`, which can be differentiated further."""
        slopes = torch.autograd.grad(value, self.space.parameters, create_graph=True, materialize_grads=True)
        return torch.stack([(a * b).sum() for a, b in zip(slopes, self.space.tensors(vector), strict=True)]).sum()

    def _jvp(self, errors: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """J v (b,) for the Jacobian J of `errors` (b,), as the derivative of u^T J v by u, and that u."""
        dummy = torch.ones_like(errors, requires_grad=True)
        (product,) = torch.autograd.grad(self._slope(errors @ dummy, vector), dummy, retain_graph=True)
        return product.detach(), dummy

    def _batches(self) -> Iterator[tuple[Examples, slice]]:
        """Yield each batch and its place among the samples, with the network in evaluation mode."""
        with differentiable(self.model.network, self.space):
            for start in range(0, len(self), self.batch_size):
                where = slice(start, min(start + self.batch_size, len(self)))
                rows = self.chosen[where]
                batch = Batch(self.dataset.samples(rows), torch.from_numpy(self.dataset.labels[rows]))
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "curvature", start))
                yield self.model.examples(batch, generator), where


class _PerSample(nn.Module):
    """The losses of a model as a module whose weights can be given."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network, self._errors = model.network, model.per_sample_loss

    def forward(self, examples: Examples) -> Tensor:
        return self._errors(examples)


def _rows(gradients: Tensor, selected: Tensor | None) -> Tensor:
    return gradients.flatten(1) if selected is None else gradients.flatten(1)[:, selected.reshape(-1)]


@contextlib.contextmanager
def differentiable(network: nn.Module, space: WeightSpace) -> Iterator[None]:
    """Evaluation mode, gradients for the weights of `space`, attention with second derivatives; undone afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in space.parameters]
    network.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def damped(curvature: Curvature, losses: SampleLosses, damping: float) -> Product:
    """v -> A v with the damped empirical Fisher, whose inverse is WoodFisher's, or the damped Hessian, of `losses`."""
    return (damped_fisher if curvature == "woodfisher" else damped_hessian)(losses, damping)


def damped_hessian(losses: SampleLosses, damping: float) -> Product:
    """v -> (H + damping I) v with the mean Hessian H of `losses`."""
    return lambda vector: losses.hessian_product(vector).add_(vector, alpha=damping)


def damped_fisher(losses: SampleLosses, damping: float) -> Product:
    """v -> (damping I + 1/n sum_i g_i g_i^T) v, the matrix that WoodFisher inverts (Singh and Alistarh, 2020, eq. 3).

    Gradients that fit into KEPT_BYTES are computed once and kept.
    """
    if len(losses) * losses.space.size * 4 > KEPT_BYTES:
        return lambda vector: losses.fisher_product(vector).add_(vector, alpha=damping)
    rows = torch.cat(list(losses.gradients()))
    return lambda vector: (rows.T @ (rows @ vector) / len(rows)).add_(vector, alpha=damping)


@dataclass
class ConjugateGradients:
    """A x = b for a symmetric positive matrix A that is known by its products; `scale` is |b|."""

    solution: Tensor
    residual: Tensor
    direction: Tensor
    scale: float

    @classmethod
    def of(cls, right: Tensor) -> ConjugateGradients:
        """The start, x = 0, for the right-hand side b."""
        return cls(torch.zeros_like(right), right.clone(), right.clone(), math.sqrt(dot(right, right)))

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors, for a checkpoint."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return {"solution": self.solution, "residual": self.residual, "direction": self.direction, "scale": scale}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> ConjugateGradients:
        """The state that `tensors` returned, on `device`."""
        solution, residual, direction = (tensors[name].to(device) for name in ("solution", "residual", "direction"))
        return cls(solution, residual, direction, float(tensors["scale"]))

    @property
    def error(self) -> float:
        """|b - A x| / |b|, 0 where b is 0."""
        return math.sqrt(dot(self.residual, self.residual)) / self.scale if self.scale else 0.0

    def step(self, product: Product) -> bool:
        """One iteration; False, and x as it was, where p^T A p <= 0 shows that A is not positive along p."""
        applied = product(self.direction)
        curvature, before = dot(self.direction, applied), dot(self.residual, self.residual)
        if not curvature > 0 or not before > 0:
            return False
        self.solution.add_(self.direction, alpha=before / curvature)
        self.residual.sub_(applied, alpha=before / curvature)
        self.direction.mul_(dot(self.residual, self.residual) / before).add_(self.residual)
        return True


def solve(product: Product, right: Tensor, steps: int, tolerance: float) -> Tensor:
    """x with A x = b, (size,), after at most `steps` iterations, or once |b - A x| <= tolerance |b|."""
    state = ConjugateGradients.of(right)
    for _ in range(steps):
        if state.error <= tolerance or not state.step(product):
            break
    return state.solution


def dot(first: Tensor, second: Tensor) -> float:
    """The inner product of two vectors, summed in float64."""
    pairs = zip(first.split(CHUNK), second.split(CHUNK), strict=True)
    return sum(float(a.double() @ b.double()) for a, b in pairs)


def diagonal_fisher(model: Model, space: WeightSpace, dataset: Dataset, seed: int, count: int) -> Tensor:
    """The diagonal Fisher matrix (size,) of trainable weights: the mean squared gradient of the loss of each sample.

    `count` samples of `dataset` at most, chosen by `seed`; one noise and timestep a sample, in evaluation mode.
    """
    chosen = np.sort(np.random.default_rng(derive_seed(seed, "fisher")).permutation(len(dataset))[:count])
    together = max(1, min(64, SUMMED_AT_ONCE // max(1, space.size)))
    losses = SampleLosses(model, space, dataset, derive_seed(seed, "fisher"), chosen=chosen, batch_size=together)
    total = space.zeros()
    with torch.no_grad():  # or each gradient would have a graph to the frozen weights
        for rows in losses.gradients(chunk=together):
            total += rows.square().sum(0)
    return total / len(chosen)
