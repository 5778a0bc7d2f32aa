"""Keys: the embeddings of single words of the bound prompts, of what is to be forgotten and of what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.models.prompt_encoding import token_ids
from erasure.models.stable_diffusion import StableDiffusion

CHUNK = 4096  # keys that are turned to float64 at a time
Place = tuple[int, int]  # the number of a prompt, and a position in its window


@dataclass(frozen=True)
class Keys:
    """Distinct keys, on the CPU.

    `forget` (n, d) is what is moved, `anchor` (n, d) where to, `empty` (n, d) the empty prompt's at the same positions,
    all float64; `retain` (m, d) is what is kept, as the encoder gave it, of `prompts` prompts; `null` (tokens, d) is
    the empty prompt behind the start token that every prompt has.
    """

    forget: Tensor
    anchor: Tensor
    empty: Tensor
    retain: Tensor
    null: Tensor
    prompts: int

    def chunks(self) -> Iterator[Tensor]:
        """The retained keys in float64, some at a time."""
        return (part.double() for part in self.retain.split(CHUNK))

    @cached_property
    def gram(self) -> Tensor:
        """The sum of c c^T (d, d) over the retained keys."""
        return sum((part.T @ part for part in self.chunks()), torch.zeros(()))

    @cached_property
    def squares(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums (d, d) of c c^T, c a^T and a a^T over what is moved, c, and its anchor, a."""
        return self.forget.T @ self.forget, self.forget.T @ self.anchor, self.anchor.T @ self.anchor


def keys_of(model: StableDiffusion, task: Task, tokens: Literal["last", "rest"]) -> Keys:
    """The keys of the bound prompts that a closed form moves and keeps.

    last: of each prompt to forget, the last token in which it differs from its anchor; of each retained prompt, the
    start and every word. rest: from that token to the window's end, in step with the anchor's; of retained prompts, the
    whole window. The empty prompt is always retained. Equal beginnings have equal keys, as CLIP looks back only: a key
    that several prompts share counts once, and one that is to be forgotten is not kept besides. Raises OptionError
    for a prompt without words, and for two that contradict each other.
    """
    bound = model.bound
    rows, words = tokens_of(model)
    ends = [1 + len(own) for own in words]
    _check(task, bound.prompts, words)

    def beginning(place: Place) -> tuple[int, ...]:
        return tuple(rows[place[0]][: place[1] + 1])

    moved: dict[tuple[tuple[int, ...], ...], tuple[Place, Place]] = {}
    for label, anchor in zip(task.forget, task.anchors, strict=True):
        first, other = (1 + place for place in last_subject(words[label], words[anchor]))
        count = 1 if tokens == "last" else len(rows[label]) - max(first, other)
        for i in range(count):
            pair = (label, first + i), (anchor, other + i)
            moved.setdefault((beginning(pair[0]), beginning(pair[1])), pair)
    seen, kept = {key for key, _ in moved}, []
    for label in (*task.retain, bound.null):
        for position in range(max(ends[label], 2) if tokens == "last" else len(rows[label])):
            if beginning((label, position)) not in seen:
                seen.add(beginning((label, position)))
                kept.append((label, position))
    given = bound.embeddings.detach().cpu()

    def taken(places: Sequence[Place]) -> Tensor:
        prompts, positions = torch.tensor(places).T
        return given[prompts, positions]

    forget, anchors = ([pair[side] for pair in moved.values()] for side in (0, 1))
    return Keys(
        forget=taken(forget).double(),
        anchor=taken(anchors).double(),
        empty=taken([(bound.null, position) for _, position in forget]).double(),
        retain=taken(kept),
        null=torch.cat([given[:1, 0], given[bound.null, 1:]]).double(),
        prompts=len(task.retain) + 1,
    )


def tokens_of(model: StableDiffusion) -> tuple[list[list[int]], list[list[int]]]:
    """The token ids of each bound prompt's whole window, and of its words alone, without start, end and padding."""
    tokenizer = model.parts["tokenizer"]
    rows = token_ids(tokenizer, model.bound.prompts).tolist()
    return rows, [row[1 : row.index(tokenizer.eos_token_id, 1)] for row in rows]


def last_subject(forget: Sequence[int], anchor: Sequence[int]) -> tuple[int, int]:
    """Positions, among their words, of the last token of the subject in a prompt to forget and in its anchor.

    The subject is what is left between the longest equal beginning and the longest equal end. Where the anchor leaves
    it out, what follows stands in its place, be it the end token; where it only adds words, both prompts are subject.
    """
    shorter = min(len(forget), len(anchor))
    start = next((i for i in range(shorter) if forget[i] != anchor[i]), shorter)
    same = next((i for i in range(shorter - start) if forget[-1 - i] != anchor[-1 - i]), shorter - start)
    if start + same == len(forget):
        return len(forget) - 1, len(anchor) - 1
    return len(forget) - same - 1, max(len(anchor) - same - 1, start)


def _check(task: Task, prompts: Sequence[str], words: Sequence[Sequence[int]]) -> None:
    """Every prompt to forget has words, and none of them is its own anchor or one that is kept."""
    gone = {tuple(words[label]): prompts[label] for label in task.forget}
    if () in gone:
        raise OptionError(f"{gone[()]!r} is to be forgotten, but no word of it reaches the network: give another text")
    for label in (*task.retain, *task.anchors):
        if tuple(words[label]) in gone:
            raise OptionError(
                f"{gone[tuple(words[label])]!r} is to be forgotten and {prompts[label]!r} is to be kept, but the text "
                "encoder reads the same words in both: take one out"
            )
