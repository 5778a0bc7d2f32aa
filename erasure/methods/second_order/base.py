"""Second-order methods: one step of the weights, theta + eta x, where A x = b is solved by conjugate gradients.

A is the damped curvature of the loss on retain samples: the empirical Fisher, whose inverse WoodFisher applies (Singh
and Alistarh, 2020), or the Hessian by exact products. b is the method's. x does not depend on eta, so trying another
eta costs one pass over some retain samples.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from erasure.core.distributed import is_main
from erasure.core.errors import DivergedError, OptionError
from erasure.core.logging import log_user
from erasure.core.rng import derive_seed
from erasure.core.run_dir import Log, read_log
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.formats.unfinished import keep, restored
from erasure.methods.base import Job, Method
from erasure.models import Model
from erasure.training.curvature import ConjugateGradients, Curvature, Product, SampleLosses, WeightSpace, damped
from erasure.training.loop import Record, TrainingResult

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class OneStep(Method):
    """A method that is one right-hand side b; a mask restricts the whole system to trainable weights."""

    steps: Annotated[int, "iterations of conjugate gradients, at most"] = 100
    tolerance: Annotated[float, "relative residual |b - A x| / |b| at which iterations end"] = 1e-4
    curvature: Annotated[Curvature, "A: empirical Fisher (woodfisher), or Hessian"] = "woodfisher"
    samples: Annotated[int, "retain samples that the curvature is estimated on"] = 1000
    damping: Annotated[float, "added to the diagonal of the curvature"] = 1.0
    step_length: Annotated[str, "eta; of several, joined by commas, the longest that --max-rise allows"] = "1"
    max_rise: Annotated[
        float, "largest rise of the mean loss on retain samples that a choice among --step-length may cost"
    ] = 0.05
    batch_size: Annotated[int, "samples per forward pass"] = 256
    checkpoint_every: Annotated[int, "iterations between checkpoints, from which a killed run continues"] = 1

    @abstractmethod
    def right(self, view: View) -> torch.Tensor:
        """Return the right-hand side b, (size,) in `view.space`."""

    @property
    def etas(self) -> tuple[float, ...]:
        """The step lengths to choose from, ascending; raises OptionError for anything but numbers above 0."""
        try:
            etas = tuple(sorted(float(part) for part in self.step_length.split(",")))
        except ValueError:
            etas = ()
        if not etas or not all(0 < value < float("inf") for value in etas):
            raise OptionError(
                f"--step-length {self.step_length}: expected numbers above 0 joined by commas, such as 1 or 1,5,10"
            )
        return etas

    def check(self, task: Task) -> None:
        """Raise OptionError for an option outside its range."""
        if self.steps < 0 or min(self.samples, self.batch_size, self.checkpoint_every) < 1:
            raise OptionError(
                "--steps must be at least 0, --samples, --batch-size and --checkpoint-every must be at least 1"
            )
        if not (self.damping > 0 and self.tolerance >= 0 and self.max_rise >= 0):
            raise OptionError("--damping must be above 0, --tolerance and --max-rise at least 0")
        assert self.etas

    def check_model(self, model: Model) -> None:
        """Accept every model: all losses have a gradient."""

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Solve for the direction, choose the length, and change the weights once."""
        self.check(job.task)
        self.check_model(model)
        model.network.eval()
        view = View(self, model, job)
        state, records = self._solve(view)
        began = time.perf_counter()
        if bool(state.solution.any()):
            start = view.space.values()
            eta = self._chosen(view, start, state.solution)
            view.space.write(start.add_(state.solution, alpha=eta))
            records[-1]["step_length"] = eta
        return TrainingResult(records, sum(r["seconds"] for r in records) + time.perf_counter() - began)

    def _solve(self, view: View) -> tuple[ConjugateGradients, list[Record]]:
        """The solution and a record for each iteration; a killed run continues from its checkpoint."""
        job, began = view.job, time.perf_counter()
        path = job.folder / CHECKPOINT if job.folder else None
        state, start = self._start(view, path)
        with _recorded(job.folder, start) as records:
            for index in range(start, self.steps):
                if state.error <= self.tolerance:
                    break
                if path and index > start and index % self.checkpoint_every == 0 and is_main():
                    keep(path, state.tensors(), index, job.fingerprint)
                if not self._iterate(state, view, index):
                    break
                record: Record = {"step": index, "residual": state.error, "seconds": time.perf_counter() - began}
                record.update(job.on_step(index + 1) if job.on_step else {})
                records.add(record)
                began = time.perf_counter()
        return state, records.kept

    def _start(self, view: View, path: Path | None) -> tuple[ConjugateGradients, int]:
        """The state to continue from, and its iteration."""
        if path is None or not path.is_file():
            return ConjugateGradients.of(self.right(view)), 0
        tensors, start = restored(path, view.job.fingerprint)
        return ConjugateGradients.from_tensors(tensors, view.model.device), start

    def _iterate(self, state: ConjugateGradients, view: View, index: int) -> bool:
        """One iteration; False where the curvature is not positive along its direction."""
        if not state.step(view.product):
            _warn_not_positive(self, index)
            return False
        if not bool(torch.isfinite(state.solution).all()):
            raise DivergedError(f"the solution is not finite after {index + 1} iterations: raise --damping", 0)
        return True

    def _chosen(self, view: View, start: torch.Tensor, direction: torch.Tensor) -> float:
        """The longest step that raises the loss on retain samples by at most --max-rise; the shortest if none does."""
        if len(self.etas) == 1:
            return self.etas[0]
        before, chosen = float(view.measured.values().mean()), None
        for eta in self.etas:
            view.space.write(start + eta * direction)
            after = float(view.measured.values().mean())
            log_user(f"step length {eta:g}: the mean loss on retain samples goes from {before:.4g} to {after:.4g}")
            chosen = eta if after - before <= self.max_rise else chosen
        if chosen is None:
            log_user(f"every --step-length raises that loss by more than {self.max_rise:g}: using the shortest")
        return chosen or self.etas[0]


class View:
    """What a right-hand side is computed from: the losses of the job's samples, and the curvature."""

    def __init__(self, method: OneStep, model: Model, job: Job) -> None:
        self.method, self.model, self.job = method, model, job
        self.space = WeightSpace(model.network, job.mask)
        if not self.space.size:
            raise OptionError("no weight is trainable: the mask leaves nothing to change")
        self.forget, self.retain = self.losses(job.forget, "forget"), self.losses(job.retain, "retain")
        chosen = np.random.default_rng(derive_seed(job.seed, "curvature")).permutation(len(job.retain))[
            : method.samples
        ]
        self.measured = self.losses(job.retain, "retain", np.sort(chosen))

    def losses(self, dataset: Dataset, purpose: str, chosen: np.ndarray | None = None) -> SampleLosses:
        """The losses of samples as a function of the trainable weights."""
        seed, size = derive_seed(self.job.seed, purpose), self.method.batch_size
        return SampleLosses(self.model, self.space, dataset, seed, chosen=chosen, batch_size=size)

    @cached_property
    def product(self) -> Product:
        """v -> A v."""
        return damped(self.method.curvature, self.measured, self.method.damping)


class _Records:
    def __init__(self, kept: list[Record], log: Log | None) -> None:
        self.kept, self.log = kept, log

    def add(self, record: Record) -> None:
        """Keep and write a record."""
        self.kept.append(record)
        if self.log is not None:
            self.log.write(record)


@contextlib.contextmanager
def _recorded(folder: Path | None, start: int) -> Iterator[_Records]:
    """The records before `start`, to which more are added, here and in the folder's log."""
    kept = [r for r in read_log(folder / "log.jsonl") if r.get("step", -1) < start] if folder else []
    log = Log(folder / "log.jsonl", kept) if folder and is_main() else None
    try:
        yield _Records(kept, log)
    finally:
        if log is not None:
            log.close()


def _warn_not_positive(method: OneStep, done: int) -> None:
    """Warn that the curvature is not positive along a direction; raises DivergedError when that is the first one."""
    what = f"the curvature ({method.curvature}, damping {method.damping:g}) is not positive along direction {done + 1}"
    advice = "raise --damping, or use --curvature woodfisher"
    if done == 0:
        raise DivergedError(f"{what}, so no step can be taken: {advice}", 0)
    log_user(f"{what}: the solution is that of {done} iterations; {advice}")
