"""forget_me_not: reduce the cross-attention of images of a concept to its words (Zhang et al., 2023).

L = sum over layers, mean over heads, of |A_c|^2, with A_c the cross-attention maps of the concept's tokens while the
network denoises images of it under its prompts; https://arxiv.org/abs/2303.17591, attention resteering. The concept's
tokens are those in which a prompt differs from its anchor. There is no retain loss: only the small number of steps
limits the damage, and it is a weak baseline in the comparison of Fan et al. (2024).

Defaults are those of the official configuration (35 steps of one image at 2e-6), but on cross-attention alone, which is
an option there: `--weights all` trains the whole network as its example does. The official code takes the norm of all
maps; we take the mean square over the images, so that a batch can be computed in parts, and omit the inversion of the
concept into a new token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from torch import Tensor

from erasure.data.task import Task
from erasure.methods.base import GradientMethod, Job, StepBatches, TrainingSetup
from erasure.methods.cross_attention.token_spans import marked, need_cross_attention, subjects
from erasure.models import Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.attention_maps import AttentionMaps


class _Attention(NamedTuple):
    """The attention maps of the network in training, and the concept's words, booleans (labels, tokens)."""

    maps: AttentionMaps
    words: Tensor


@dataclass(frozen=True, kw_only=True)
class ForgetMeNot(GradientMethod):
    """Attention resteering."""

    reads: ClassVar[tuple[str, ...]] = ("forget",)

    steps: Annotated[int, "optimiser steps"] = 35
    batch_size: Annotated[int, "forget images per step"] = 1
    learning_rate: Annotated[float, "learning rate"] = 2e-6
    weights: Annotated[
        Literal["all", "attn1", "attn2", "not-attn2"], "which tensors are trained; attn2 is cross-attention"
    ] = "attn2"

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a network without cross-attention."""
        need_cross_attention(model, "forget_me_not")
        super().check_model(model)

    @contextmanager
    def prepared(self, model: Model, job: Job) -> Iterator[TrainingSetup]:
        """Record the attention maps while the loop runs, and find the concept's words."""
        assert isinstance(model, StableDiffusion)
        words = marked(subjects(model, job.task), model)
        with AttentionMaps(model.network) as maps:
            yield TrainingSetup(job, _Attention(maps, words))

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the squared maps of the concept's words, a mean over the images."""
        attention: _Attention = batches.state
        forget = batches.forget_examples(model)
        model.prediction(forget.inputs)
        return {"loss": attention.maps.squares(attention.words[forget.inputs[2]]).mean()}
