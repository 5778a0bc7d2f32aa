"""Prompts as a network sees them: encoded once, kept by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasure.core.logging import log_warning

WINDOW = 77  # CLIP's, for tokenizers that do not record theirs


@dataclass(frozen=True)
class PromptEmbeddings:
    """Encoded prompts, the last one empty: `embeddings` (n, tokens, d), `pooled` (n, p) where the family has them.

    A model that steers away from a text has its embedding as one row more, behind those of `prompts`.
    """

    prompts: tuple[str, ...]
    embeddings: Tensor
    pooled: Tensor | None = None

    @property
    def null(self) -> int:
        """The number of the empty prompt."""
        return len(self.prompts) - 1

    def to(self, device: torch.device) -> PromptEmbeddings:
        """The same on another device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return PromptEmbeddings(self.prompts, self.embeddings.to(device), pooled)


_told: set[str] = set()  # prompts whose cut was said; two encoders and two models bind the same ones


def never_told(prompts: Sequence[str]) -> None:
    """Cut these prompts without a word of warning, where they are to stand in no log."""
    _told.update(prompts)


def token_ids(tokenizer: Any, prompts: Sequence[str], window: int | None = None) -> Tensor:
    """Token ids (n, window), padded; a prompt that is too long is cut, and the cut is told.

    The window is the tokenizer's own, CLIP's at most, unless another is given.
    """
    window = window or min(tokenizer.model_max_length, WINDOW)
    for prompt in prompts:
        whole = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(whole) > window and prompt not in _told:
            _told.add(prompt)
            lost = tokenizer.decode(whole[window - 1 : -1], skip_special_tokens=True)
            log_warning(
                f"the prompt {prompt!r} is longer than the text encoder's {window} tokens; it is cut before {lost!r}"
            )
    found = tokenizer(list(prompts), padding="max_length", max_length=window, truncation=True, return_tensors="pt")
    return found.input_ids


@torch.no_grad()
def in_batches(encode: Any, prompts: Sequence[str], size: int = 32) -> list[Tensor | None]:
    """What `encode(prompts)` gives, a tuple of tensors or None, over batches of prompts, joined."""
    parts = [encode(prompts[i : i + size]) for i in range(0, len(prompts), size)]
    return [None if part[0] is None else torch.cat(part) for part in map(list, zip(*parts, strict=True))]
