"""Saliency: one score per weight, from the gradient of the forget loss (Fan et al., 2024, eq. 4).

Gradients are added to the scores as the backward pass produces them: beside the network, memory has its scores and no
list of gradients (unless each batch's gradient is clipped, which needs all of them at once).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.distributed import is_main
from erasure.core.errors import DivergedError, OptionError
from erasure.core.logging import progress
from erasure.core.rng import derive_seed
from erasure.data import Batch, Dataset
from erasure.formats.unfinished import keep, restored
from erasure.models import Model
from erasure.models.base import recomputed_activations
from erasure.saliency.mask import Mask, check_density

ScoreRule = Literal["sum_abs", "abs_sum", "square_sum"]


@dataclass(frozen=True)
class SaliencyConfig:
    """How weights are scored and how many of them a mask selects; defaults are the paper's."""

    density: Annotated[float, "share of the weights in the mask"] = 0.5
    score: Annotated[ScoreRule, "|sum of gradients|, sum of |gradients|, or sum of squares (Fisher)"] = "sum_abs"
    guidance_scale: Annotated[float, "e(0) + g (e(c) - e(0)) in the loss; the official DDPM code's w = 2 is g = 3"] = (
        1.0
    )
    clip_saliency: Annotated[float, "largest norm of each batch's gradient before it is added, 0 for none"] = 0.0
    saliency_batch_size: Annotated[int, "forget images per backward pass"] = 128

    def check(self) -> None:
        """Raise OptionError for a value outside its range."""
        check_density(self.density)
        if self.score not in ("sum_abs", "abs_sum", "square_sum"):
            raise OptionError(f"unknown --score {self.score!r}: expected sum_abs, abs_sum or square_sum")
        if self.saliency_batch_size < 1:
            raise OptionError(f"--saliency-batch-size {self.saliency_batch_size} must be at least 1")


def saliency_scores(
    model: Model,
    forget: Dataset,
    settings: SaliencyConfig,
    *,
    seed: int = 0,
    partial: Path | None = None,
    fingerprint: str = "",
    checkpoint_every: int = 10,
    low_memory: bool = False,
) -> dict[str, Tensor]:
    """Score the weights of `model`, by tensor name: one pass over `forget` in evaluation mode, no optimiser step.

    Each image gets one noise and one timestep (antithetic in its batch). `sum_abs` is |sum over batches of dL/dw| with
    L the mean loss over the forget set; with `clip_saliency` each batch's own mean is clipped, then added, as the
    official DDPM code does.

    Args:
        model: The original model; its weights do not change.
        forget: The forget set.
        settings: Rule, guidance scale, clipping and batch size.
        seed: Seed of noise and timesteps.
        partial: A file that keeps the unfinished scores; a killed pass continues from it.
        fingerprint: Identifies the settings that `partial` belongs to.
        checkpoint_every: Batches between two writes of `partial`.
        low_memory: Recompute activations and run the forward pass in bf16.

    Raises:
        DivergedError: The forget loss is not finite.
        ModelError: The labels of `model` mean other classes or prompts than those of `forget`.
    """
    settings.check()
    model.check_labels(forget.class_names)
    if checkpoint_every < 1:
        raise OptionError(f"--checkpoint-every {checkpoint_every} must be at least 1")
    network = model.network
    scores, start = _restored(partial, fingerprint, network)
    batches = math.ceil(len(forget) / settings.saliency_batch_size)
    with _accumulating(network, scores, settings) as add, recomputed_activations(network, None, low_memory):
        for index in progress(range(start, batches), initial=start, total=batches, desc="saliency"):
            if partial is not None and is_main() and index > start and index % checkpoint_every == 0:
                keep(partial, scores, index, fingerprint)
            _backward(model, forget, settings, index, seed, low_memory)
            add()
    if settings.score == "sum_abs":
        for score in scores.values():
            score.abs_()
    return scores


def build_mask(
    kind: str,
    model: Model,
    forget: Dataset,
    scoring: SaliencyConfig,
    seed: int,
    partial: Path | None = None,
    fingerprint: str = "",
    concept: str = "",
    checkpoint_every: int = 10,
    low_memory: bool = False,
) -> Mask:
    """Make a mask of `scoring.density`.

    Args:
        kind: saliency (the most salient weights), random (as many weights, drawn uniformly), or inverted (the least
            salient ones).
        model: The original model.
        forget: The forget set.
        scoring: How weights are scored, and the density.
        seed: Seed of the scores or the random mask.
        partial: See `saliency_scores`, as for the arguments after it.
        fingerprint: Identifies the settings that `partial` belongs to.
        concept: What the mask is for, for its provenance.
        checkpoint_every: Batches between two writes of `partial`.
        low_memory: Recompute activations and run the forward pass in bf16.
    """
    provenance = {"model_hash": model.hash, "concept": concept, "seed": seed, **asdict(scoring)}
    if kind == "random":
        like = Mask({name: parameter.detach() for name, parameter in model.network.named_parameters()}, provenance)
        return Mask.random(like, scoring.density, derive_seed(seed, "mask"))
    scores = saliency_scores(
        model,
        forget,
        scoring,
        seed=seed,
        partial=partial,
        fingerprint=fingerprint,
        checkpoint_every=checkpoint_every,
        low_memory=low_memory,
    )
    if kind == "inverted":
        # The complement of the top part, so that at density 0.5 it selects exactly the weights that SalUn freezes.
        return (
            ~Mask.top(scores, 1 - scoring.density, provenance)
            if scoring.density < 1
            else Mask.top(scores, 1, provenance)
        )
    return Mask.top(scores, scoring.density, provenance)


def _backward(model: Model, forget: Dataset, settings: SaliencyConfig, index: int, seed: int, low_memory: bool) -> None:
    """Run the backward pass of one batch's share of the forget loss."""
    chosen = np.arange(len(forget))[index * settings.saliency_batch_size : (index + 1) * settings.saliency_batch_size]
    batch = Batch(forget.samples(chosen), torch.from_numpy(forget.labels[chosen]))
    generator = torch.Generator().manual_seed(derive_seed(seed, "saliency", index))
    kind = model.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=low_memory, cache_enabled=False):
        errors = model.per_sample_loss(model.examples(batch, generator), settings.guidance_scale)
    loss = errors.mean() if settings.clip_saliency else errors.sum() / len(forget)
    if not bool(torch.isfinite(loss)):
        raise DivergedError(
            f"the forget loss is {loss.item()} in saliency batch {index}: the model or data is damaged", 0
        )
    loss.backward()


@contextlib.contextmanager
def _accumulating(
    network: nn.Module, scores: dict[str, Tensor], settings: SaliencyConfig
) -> Iterator[Callable[[], None]]:
    """Add the gradients of all weights to `scores`, in evaluation mode; yields what to call after each backward pass.

    When the block is left, the network's mode, gradients and hooks are as they were.
    """
    training = network.training
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    parameters = dict(network.named_parameters())
    network.eval()
    hooks = []
    for name, parameter in parameters.items():
        parameter.requires_grad_(True)
        scores.setdefault(name, torch.zeros_like(parameter, memory_format=torch.contiguous_format).detach())
        if not settings.clip_saliency:
            hooks.append(parameter.register_post_accumulate_grad_hook(_adder(scores[name], settings.score)))

    def add() -> None:
        if settings.clip_saliency:
            nn.utils.clip_grad_norm_(parameters.values(), settings.clip_saliency)
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    _adder(scores[name], settings.score)(parameter)

    try:
        yield add
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(flags[name])
        network.train(training)


def _adder(score: Tensor, rule: ScoreRule) -> Callable[[Tensor], None]:
    """A function that adds a parameter's gradient to its score and frees the gradient."""

    def add(parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if rule == "square_sum":
            score.addcmul_(gradient, gradient)
        else:
            score.add_(gradient.abs_() if rule == "abs_sum" else gradient)
        parameter.grad = None

    return add


def _restored(partial: Path | None, fingerprint: str, network: nn.Module) -> tuple[dict[str, Tensor], int]:
    """The unfinished scores and the batch to continue with; no scores and 0 without any."""
    if partial is None or not partial.is_file():
        return {}, 0
    tensors, start = restored(partial, fingerprint)
    device = next(network.parameters()).device
    return {name: tensor.to(device) for name, tensor in tensors.items()}, start
