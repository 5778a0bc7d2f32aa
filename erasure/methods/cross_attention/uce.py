"""uce: solve key and value matrices so that a concept's words map to its anchor's (Gandikota et al., 2024).

Unified Concept Editing in Diffusion Models (https://arxiv.org/abs/2308.14761), eq. 7, on the cross-attention of the
U-Net: W = (lambda W0 + sum_forget s_e W0 c_anchor c^T + sum_retain s_p W0 c c^T)
(lambda I + sum_forget s_e c c^T + sum_retain s_p c c^T)^-1.
The defaults are those of the authors' present code: lambda 0.5, all scales 1, the subject's last token. `--preset old`
is the paper's: lambda 0.1, every token from the subject's last on, retained keys weighted by 1/n of n prompts but at
least 0.1.
We depart from both in what is kept: every word of a retained prompt and not only its last, and always the empty prompt;
a key that several prompts share counts once. An anchor that leaves the subject out lends what stands in its place, not
its start token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from erasure.methods.base import Options
from erasure.methods.cross_attention.closed_form import Edit, LeastSquares, shares_of, squares, times
from erasure.methods.cross_attention.keys import Keys


@dataclass(frozen=True, kw_only=True)
class UCE(LeastSquares):
    """One edit of all matrices."""

    presets: ClassVar[Mapping[str, Options]] = {
        "new": {"tokens": "last", "ridge": 0.5, "erase_scale": 1.0, "preserve_scale": 1.0},
        "old": {"tokens": "rest", "ridge": 0.1, "erase_scale": 1.0, "preserve_scale": None},
    }

    def edits(self, originals: Sequence[Tensor], keys: Keys) -> Iterator[tuple[Edit, dict[str, float]]]:
        """Every matrix times the same (d, d)."""
        operator, condition = self.operator(keys.forget, keys.anchor, keys)
        yield times(operator), {**shares_of(operator, squares(originals), keys), "condition": condition}
