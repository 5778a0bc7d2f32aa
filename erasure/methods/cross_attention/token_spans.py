"""What methods share that work on the cross-attention of a concept: its tokens, and the models that have any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data.task import Task
from erasure.methods.cross_attention.keys import last_subject, tokens_of
from erasure.models import Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.attention_maps import cross_attentions


def need_cross_attention(model: Model, name: str) -> None:
    """Raise NotApplicableError for a model whose network reads no prompt, or not by a cross-attention."""
    if model.joint_attention:
        raise NotApplicableError(
            f"image and text share every attention of a {model.family} network: there is no map of the prompt alone, "
            f"which is what {name} works on"
        )
    if not isinstance(model, StableDiffusion) or not cross_attentions(model.network):
        raise NotApplicableError(
            f"{name} works on what an image looks at in its prompt: a {model.family} network has no cross-attention"
        )


def target_of(forget: Sequence[int], anchor: Sequence[int]) -> range:
    """The positions, among the words of a prompt to forget, that its anchor says in another way or leaves out.

    Where the anchor only adds words, the whole prompt. Raises OptionError for a prompt without words.
    """
    if not forget:
        raise OptionError("a prompt that is to be forgotten has no word that reaches the network: give another text")
    last, _ = last_subject(forget, anchor)
    start = next((i for i in range(last + 1) if i >= len(anchor) or forget[i] != anchor[i]), last + 1)
    rest = len(forget) - start
    only_more = len(anchor) > len(forget) and list(forget[start:]) == list(anchor[len(anchor) - rest :])
    return range(0 if only_more else start, last + 1)


def subjects(model: StableDiffusion, task: Task) -> dict[int, range]:
    """Of each prompt to forget, the positions in the network's window of the tokens that are the concept."""
    words = tokens_of(model)[1]
    spans = {label: target_of(words[label], words[a]) for label, a in zip(task.forget, task.anchors, strict=True)}
    return {label: range(span.start + 1, span.stop + 1) for label, span in spans.items()}  # behind the start token


def marked(spans: dict[int, range], model: StableDiffusion) -> Tensor:
    """Booleans (labels, tokens) that are true at the positions of `spans`, on the model's device."""
    found = torch.zeros(model.bound.embeddings.shape[:2], dtype=torch.bool)
    for label, span in spans.items():
        found[label, span.start : span.stop] = True
    return found.to(model.device)


@dataclass(frozen=True)
class Concepts:
    """What is to be forgotten, by concept.

    `words` (labels, tokens) marks each prompt's own words of its concept, `chosen` (labels, n) which of n concepts it
    is of. `pairs` are the keys behind those words and those at the same places behind the anchor's, (m, d) each;
    `grams` (n, d, d) the sum of e e^T over a concept's keys from its words on. Keys are float64, on the CPU.
    """

    words: Tensor
    chosen: Tensor
    pairs: tuple[Tensor, Tensor]
    grams: Tensor

    @classmethod
    def of(cls, model: StableDiffusion, task: Task) -> Self:
        """Those of `task`, from the bound prompts."""
        given, words, spans = model.bound.embeddings.detach().cpu().double(), tokens_of(model)[1], subjects(model, task)
        numbers: dict[tuple[int, ...], int] = {}
        chosen = torch.zeros(len(given), len(spans))
        before, after, own = [], [], []
        for label, anchor in zip(task.forget, task.anchors, strict=True):
            span = spans[label]
            number = numbers.setdefault(tuple(words[label][span.start - 1 : span.stop - 1]), len(numbers))
            chosen[label, number] = 1.0
            behind = span.stop + len(words[anchor]) - len(words[label])  # in the anchor, whose end is the same
            count = given.shape[1] - max(span.stop, behind)
            before.append(given[label, span.stop : span.stop + count])
            after.append(given[anchor, behind : behind + count])
            own.append((number, given[label, span.start :]))
        grams = torch.zeros(len(numbers), given.shape[2], given.shape[2], dtype=torch.float64)
        for number, keys in own:
            grams[number] += keys.T @ keys
        pairs = torch.cat(before), torch.cat(after)
        return cls(marked(spans, model), chosen[:, : len(numbers)].to(model.device), pairs, grams)
