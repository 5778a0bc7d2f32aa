"""Closed forms: map a concept's words to its anchor's in cross-attention, by least squares instead of training.

Cross-attention maps a word to W c, with c the word's embedding, its key, and W the matrix of keys or values. Most edits
are W = W0 T with one T for all matrices, as targets are outputs of W0 itself. Systems are solved in float64.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from erasure.core.distributed import is_main
from erasure.core.errors import DivergedError, OptionError
from erasure.core.logging import log_warning
from erasure.core.run_dir import Log
from erasure.data.task import Task
from erasure.methods.base import Job, Method
from erasure.methods.cross_attention.keys import Keys, keys_of
from erasure.methods.cross_attention.token_spans import need_cross_attention
from erasure.models import Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.attention_maps import cross_attentions
from erasure.training.loop import Record, TrainingResult

WORST = 1e12  # condition number above which a float64 solution keeps too few digits
Edit = Callable[[Tensor], Tensor]  # from an original matrix (out, d) to the edited one, both in float64


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Method):
    """A method that is one or several edits of the matrices that cross-attention reads the prompt through."""

    no_mask: ClassVar[str] = "each matrix is the solution of one system, and a masked part of it solves nothing"
    reads: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ("to_k", "to_v")

    tokens: Annotated[
        Literal["last", "rest"],
        "keys to edit: of the last word in which a prompt and its anchor differ, or from it to the window's end",
    ] = "last"

    @abstractmethod
    def edits(self, originals: Sequence[Tensor], keys: Keys) -> Iterator[tuple[Edit, dict[str, float]]]:
        """Edits of the originals (out, d), float32, one after the other, each with its record, `shares` among it.

        A record may be filled in while the edit is made.
        """

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a network without cross-attention."""
        need_cross_attention(model, type(self).__name__)

    @torch.no_grad()
    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Write one edit after the other; a record each, whose `loss` is the share of the way to the anchor left."""
        self.check(job.task)
        self.check_model(model)
        assert isinstance(model, StableDiffusion)
        model.network.eval()
        began = time.perf_counter()
        keys = keys_of(model, job.task, self.tokens)
        matrices = matrices_of(model.network, self.parts)
        originals = [matrix.detach().cpu().clone() for matrix in matrices.values()]
        records: list[Record] = []
        log = Log(job.folder / "log.jsonl", []) if job.folder and is_main() else None
        try:
            for step, (edit, found) in enumerate(self.edits(originals, keys)):
                for (name, matrix), original in zip(matrices.items(), originals, strict=True):
                    write(matrix, name, edit(original.double()))
                record = {"step": step, **found, "seconds": time.perf_counter() - began}
                record.update(job.on_step(step + 1) if job.on_step else {})
                records.append(record)
                if log is not None:
                    log.write(record)
                began = time.perf_counter()
        finally:
            if log is not None:
                log.close()
        return TrainingResult(records, sum(record["seconds"] for record in records))


@dataclass(frozen=True, kw_only=True)
class LeastSquares(ClosedForm):
    """The objective of UCE (Gandikota et al., 2024, eq. 7), with v = W0 c_anchor.

    sum_forget s_e |W c - v|^2 + sum_retain s_p |W c - W0 c|^2 + lambda |W - W0|^2, over keys c, each counted once.
    """

    ridge: Annotated[float, "lambda: weight of the squared distance from the original matrices"] = 0.5
    erase_scale: Annotated[float, "weight s_e of a key to forget"] = 1.0
    preserve_scale: Annotated[float | None, "weight s_p of a retained key (none: 1/n of n prompts, at least 0.1)"] = 1.0

    def check(self, task: Task) -> None:
        """Raise OptionError for a weight outside its range."""
        in_range("--ridge", self.ridge)
        in_range("--erase-scale", self.erase_scale, above=True)
        in_range("--preserve-scale", self.preserve_scale or 0.0)

    def operator(self, inputs: Tensor, targets: Tensor, keys: Keys) -> tuple[Tensor, float]:
        """T (d, d), and the system's condition number: W0 T sends `inputs` (n, d) where W0 sends `targets` (n, d)."""
        preserve = max(0.1, 1 / keys.prompts) if self.preserve_scale is None else self.preserve_scale
        unit = torch.eye(inputs.shape[1], dtype=torch.float64)
        system = self.ridge * unit + self.erase_scale * inputs.T @ inputs + preserve * keys.gram
        way = self.erase_scale * (targets - inputs).T @ inputs
        solution, condition = solved(system, way.T)
        return unit + solution.T, condition


def in_range(flag: str, value: float, *, above: bool = False) -> None:
    """Raise OptionError unless `value` is finite and at least 0, or above it."""
    if not (value > 0 or (value == 0 and not above)) or value == float("inf"):
        raise OptionError(f"{flag} {value:g} must be finite and {'above' if above else 'at least'} 0")


def solved(system: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """X with `system` X = `right`, and the condition number; `system` (d, d) is symmetric and has no negative value.

    Eigenvalues below the largest / 1e12 are raised to that, and the user is told. Raises DivergedError for a system
    that is not finite.
    """
    if not bool(torch.isfinite(system).all() and torch.isfinite(right).all()):
        raise DivergedError("the system of the closed form is not finite: the text encoder's answers are broken", 0)
    values, vectors = torch.linalg.eigh(system)
    largest = float(values[-1])
    condition = largest / max(float(values[0]), torch.finfo(values.dtype).tiny)
    if condition > WORST:
        least = max(largest, torch.finfo(values.dtype).tiny) / WORST
        log_warning(f"the system's condition number is {condition:.2g}: its eigenvalues are raised to {least:.2g}")
        values = values.clamp(min=least)
    return vectors @ ((vectors.T @ right) / values[:, None]), condition


def shares(before: Tensor, crossed: Tensor, after: Tensor, keys: Keys) -> dict[str, float]:
    """`loss`: of the squared way from the concept to its anchor, the share left; `retain`: of what is kept, the share
    changed. Over all matrices together, from the sums `before` of W0^T W0, `crossed` of W^T W0, `after` of W^T W."""

    concept, between, anchor = keys.squares
    left = float((after * concept - 2 * crossed * between + before * anchor).sum())
    way = float((before * (concept - between - between.T + anchor)).sum())
    changed = float(((after - crossed - crossed.T + before) * keys.gram).sum())
    tiny = torch.finfo(torch.float64).tiny
    return {
        "loss": max(left, 0.0) / max(way, tiny),
        "retain": max(changed, 0.0) / max(float((before * keys.gram).sum()), tiny),
    }


def shares_of(operator: Tensor, before: Tensor, keys: Keys) -> dict[str, float]:
    """The same where every W is W0 `operator`."""
    crossed = operator.T @ before
    return shares(before, crossed, crossed @ operator, keys)


def times(operator: Tensor) -> Edit:
    """The edit W0 `operator`."""
    return lambda matrix: matrix @ operator


def squares(matrices: Iterable[Tensor]) -> Tensor:
    """The sum of W^T W (d, d), in float64."""
    return sum((matrix.T @ matrix for matrix in map(torch.Tensor.double, matrices)), torch.zeros(()))


def matrices_of(network: nn.Module, parts: Sequence[str] = ("to_k", "to_v")) -> dict[str, nn.Parameter]:
    """The matrices (out, d) that every cross-attention reads the prompt through, by name."""
    layers = cross_attentions(network).items()
    return {f"{name}.{part}.weight": getattr(layer, part).weight for name, layer in layers for part in parts}


@torch.no_grad()
def write(matrix: nn.Parameter, name: str, edited: Tensor) -> None:
    """Put `edited` (out, d) in the place of a matrix; raises DivergedError when it is not finite."""
    if not bool(torch.isfinite(edited).all()):
        raise DivergedError(f"{name} would not be finite after the edit: raise --ridge", 0)
    matrix.copy_(edited)
