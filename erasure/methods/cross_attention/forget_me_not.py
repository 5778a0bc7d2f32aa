"""forget_me_not: lower how much images of a concept look at its words (Zhang et al., 2023).

L = sum over layers, mean over heads, of |A_c|^2, with A_c the cross-attention maps of the concept's tokens while the
network denoises images of it under its prompts; https://arxiv.org/abs/2303.17591, attention resteering. The concept's
tokens are those in which a prompt differs from its anchor. Nothing else is asked for, and nothing keeps what is
retained: few steps are all that holds it, and it is a weak baseline in the comparison of Fan et al. (2024).

Defaults are those of the official configuration (35 steps of one image at 2e-6), but on cross-attention alone, which is
an option there: `--weights all` trains the whole network as its example does. The official code takes the norm of all
maps; we take the mean square of the images, so that a batch may be computed in parts, and leave out the concept's
inversion into a new token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from torch import Tensor

from erasure.data.task import Task
from erasure.methods.base import GradientMethod, Job, StepBatches
from erasure.methods.cross_attention.token_spans import marked, need_cross_attention, subjects
from erasure.models import Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.attention_maps import AttentionMaps


class _Watched(NamedTuple):
    """The maps of the network in training, and the concept's words, booleans (labels, tokens)."""

    maps: AttentionMaps
    words: Tensor


@dataclass(frozen=True, kw_only=True)
class ForgetMeNot(GradientMethod):
    """Attention resteering."""

    reads: ClassVar[tuple[str, ...]] = ("forget",)

    steps: Annotated[int, "optimiser steps"] = 35
    batch_size: Annotated[int, "forget images a step"] = 1
    learning_rate: Annotated[float, "step size"] = 2e-6
    weights: Annotated[
        Literal["all", "attn1", "attn2", "not-attn2"], "which tensors may move; attn2 is cross-attention"
    ] = "attn2"

    def check_model(self, model: Model) -> None:
        """It has cross-attention."""
        need_cross_attention(model, "forget_me_not")
        super().check_model(model)

    @contextmanager
    def running(self, model: Model, job: Job) -> Iterator[_Watched]:
        """The maps, caught until the loop is done, and the words."""
        assert isinstance(model, StableDiffusion)
        words = marked(subjects(model, job.task), model)
        with AttentionMaps(model.network) as maps:
            yield _Watched(maps, words)

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """The squared maps of the concept's words, a mean over the images."""
        watched: _Watched = draws.own
        forget = model.examples(draws.forget, draws.generator).part(draws.step.part, draws.step.parts)
        model.prediction(forget.inputs)
        return {"loss": watched.maps.squares(watched.words[forget.inputs[2]]).mean()}
