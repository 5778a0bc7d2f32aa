"""rece: a UCE edit, then in rounds find and edit the embedding that revives the concept (Gong et al., 2024).

Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models (https://arxiv.org/abs/2407.12383). A round
finds, for each key c of the concept, c' = argmin sum |W c' - W0 c|^2 + alpha |c'|^2
= (alpha I + sum W^T W)^-1 (sum W^T W0) c over all matrices, W as they are and W0 as they were at first; then c' is
edited as UCE edits c, towards the empty prompt, with W in the place of W0.
Defaults are the paper's for nudity: lambda and the weight of what is kept 0.1, alpha 0.1, three rounds. The presets are
its other settings: `unsafe` two rounds; `style`, for styles and for objects that UCE leaves, alpha 1e-3 and one round;
`object`, for others, one round.
We depart from the authors' code in what is kept, as uce does, and revive the tokens that the first edit moves, the
subject's last and all behind it, where the code revives the whole window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import OptionError
from erasure.data.task import Task
from erasure.methods.base import Options
from erasure.methods.cross_attention.closed_form import Edit, LeastSquares, in_range, shares_of, solved, squares, times
from erasure.methods.cross_attention.keys import Keys


@dataclass(frozen=True, kw_only=True)
class RECE(LeastSquares):
    """One edit, and one more a round."""

    presets: ClassVar[Mapping[str, Options]] = {
        "nudity": {"rounds": 3, "alpha": 0.1},
        "unsafe": {"rounds": 2, "alpha": 0.1},
        "style": {"rounds": 1, "alpha": 1e-3},
        "object": {"rounds": 1, "alpha": 0.1},
    }

    tokens: Annotated[
        Literal["last", "rest"],
        "keys to edit: of the last word in which a prompt and its anchor differ, or from it to the window's end",
    ] = "rest"
    ridge: Annotated[float, "lambda: weight of the squared distance from the matrices before an edit"] = 0.1
    preserve_scale: Annotated[float | None, "weight s_p of a retained key (none: 1/n of n prompts, at least 0.1)"] = 0.1
    rounds: Annotated[int, "rounds in which a reviving embedding is found and edited"] = 3
    alpha: Annotated[float, "weight of the squared length of a reviving embedding"] = 0.1
    toward: Annotated[Literal["empty", "anchor"], "target of reviving embeddings"] = "empty"

    def check(self, task: Task) -> None:
        """Raise OptionError for a weight or a number of rounds outside its range."""
        super().check(task)
        in_range("--alpha", self.alpha)
        if self.rounds < 0:
            raise OptionError(f"--rounds {self.rounds} must be at least 0")

    def edits(self, originals: Sequence[Tensor], keys: Keys) -> Iterator[tuple[Edit, dict[str, float]]]:
        """UCE's, then a round each; `revived` is the share of the concept's answers that the embeddings found revive.

        As W is W0 T for every matrix, sum W^T W is T^T S T with S = sum W0^T W0.
        """
        answers = squares(originals)
        total, condition = self.operator(keys.forget, keys.anchor, keys)
        yield times(total), {**shares_of(total, answers, keys), "condition": condition}
        targets = keys.empty if self.toward == "empty" else keys.anchor
        whole = max(_square(keys.forget, answers), torch.finfo(torch.float64).tiny)
        for _ in range(self.rounds):
            found = self.reviving(keys.forget, total, answers)
            revived = 1 - _square(found @ total.T - keys.forget, answers) / whole
            operator, condition = self.operator(found, targets, keys)
            total = total @ operator
            yield times(total), {**shares_of(total, answers, keys), "condition": condition, "revived": revived}

    def reviving(self, forget: Tensor, total: Tensor, answers: Tensor) -> Tensor:
        """c' (n, d) for keys c = `forget` (n, d), under W = W0 `total`, with `answers` S (d, d)."""
        unit = torch.eye(len(total), dtype=total.dtype)
        solution, _ = solved(self.alpha * unit + total.T @ answers @ total, total.T @ answers @ forget.T)
        return solution.T


def _square(keys: Tensor, answers: Tensor) -> float:
    """The sum of |W0 c|^2 over matrices and keys."""
    return float(((keys @ answers) * keys).sum())
