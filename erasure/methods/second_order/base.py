"""One step of the weights, theta + eta x, with x the solution of a curvature system that is solved once.

A x = b by conjugate gradients, A a damped curvature of the loss on retain samples: the empirical Fisher, whose inverse
is what WoodFisher applies (Singh and Alistarh, 2020), or the Hessian by exact products. b is the method's. x does not
depend on eta, so that trying several costs a pass over some retain samples each.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

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
from erasure.training.loop import TrainingResult


@dataclass(frozen=True, kw_only=True)
class OneStep(Method):
    """A method that is one right-hand side b; a mask restricts the whole system to the weights it leaves free."""

    steps: Annotated[int, "iterations of conjugate gradients, at most"] = 100
    tolerance: Annotated[float, "relative residual |b - A x| / |b| at which they end"] = 1e-4
    curvature: Annotated[Curvature, "A: empirical Fisher (woodfisher), or Hessian"] = "woodfisher"
    samples: Annotated[int, "retain samples that the curvature is measured on"] = 1000
    damping: Annotated[float, "added to the diagonal of the curvature"] = 1.0
    step_length: Annotated[str, "eta; of several, joined by commas, the longest that --max-rise allows"] = "1"
    max_rise: Annotated[
        float, "largest rise of the mean loss on retain samples that a choice among --step-length may cost"
    ] = 0.05
    batch_size: Annotated[int, "samples a forward pass"] = 256
    checkpoint_every: Annotated[int, "iterations between checkpoints, from which a killed run continues"] = 1

    @abstractmethod
    def right(self, view: View) -> torch.Tensor:
        """The right-hand side b, (size,) in `view.space`."""

    @property
    def etas(self) -> tuple[float, ...]:
        """The lengths to choose from, ascending."""
        try:
            found = tuple(sorted(float(part) for part in self.step_length.split(",")))
        except ValueError:
            found = ()
        if not found or not all(0 < value < float("inf") for value in found):
            raise OptionError(
                f"--step-length {self.step_length}: expected numbers above 0 joined by commas, such as 1 or 1,5,10"
            )
        return found

    def check(self, task: Task) -> None:
        """Every option is in its range."""
        if self.steps < 0 or min(self.samples, self.batch_size, self.checkpoint_every) < 1:
            raise OptionError(
                "--steps must be at least 0, --samples, --batch-size and --checkpoint-every must be at least 1"
            )
        if not (self.damping > 0 and self.tolerance >= 0 and self.max_rise >= 0):
            raise OptionError("--damping must be above 0, --tolerance and --max-rise at least 0")
        assert self.etas

    def check_model(self, model: Model) -> None:
        """Any network whose loss has a gradient."""

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Solve for the direction, choose the length, and move the weights once."""
        self.check(job.task)
        self.check_model(model)
        model.network.eval()
        view = View(self, model, job)
        state, records = self._solved(view)
        began = time.perf_counter()
        if bool(state.solution.any()):
            start = view.space.values()
            eta = self._chosen(view, start, state.solution)
            view.space.write(start.add_(state.solution, alpha=eta))
            records[-1]["step_length"] = eta
        return TrainingResult(records, sum(r["seconds"] for r in records) + time.perf_counter() - began)

    def _solved(self, view: View) -> tuple[ConjugateGradients, list[dict[str, Any]]]:
        """The solution and a record an iteration; what a killed run had is taken up again."""
        job, began = view.job, time.perf_counter()
        path = job.folder / "checkpoint.safetensors" if job.folder else None
        state, start = _restored(path, job.fingerprint) if path and path.is_file() else (None, 0)
        state = _on(state, view) if state else ConjugateGradients.of(self.right(view))
        with _recorded(job.folder, start) as records:
            for index in range(start, self.steps):
                if state.error <= self.tolerance:
                    break
                if path and index > start and index % self.checkpoint_every == 0 and is_main():
                    _keep(path, state, index, job.fingerprint)
                if not state.step(view.product):
                    _tell_negative(self, index)
                    break
                if not bool(torch.isfinite(state.solution).all()):
                    raise DivergedError(f"the solution is not finite after {index + 1} iterations: raise --damping", 0)
                record = {"step": index, "residual": state.error, "seconds": time.perf_counter() - began}
                record.update(job.on_step(index + 1) if job.on_step else {})
                records.add(record)
                began = time.perf_counter()
        return state, records.kept

    def _chosen(self, view: View, start: torch.Tensor, direction: torch.Tensor) -> float:
        """The longest step that keeps the loss on retain samples; the shortest where none does."""
        if len(self.etas) == 1:
            return self.etas[0]
        before, chosen = float(view.measured.values().mean()), None
        for eta in self.etas:
            view.space.write(start + eta * direction)
            after = float(view.measured.values().mean())
            log_user(f"step length {eta:g}: the mean loss on retain samples goes from {before:.4g} to {after:.4g}")
            chosen = eta if after - before <= self.max_rise else chosen
        if chosen is None:
            log_user(f"every --step-length raises that loss by more than {self.max_rise:g}: the shortest is taken")
        return chosen or self.etas[0]


class View:
    """What a right-hand side is made from: the losses of the job's samples, and the curvature."""

    def __init__(self, method: OneStep, model: Model, job: Job) -> None:
        self.method, self.model, self.job = method, model, job
        self.space = WeightSpace(model.network, job.mask)
        if not self.space.size:
            raise OptionError("no weight may move: the mask leaves nothing to change")
        self.forget, self.retain = self.losses(job.forget, "forget"), self.losses(job.retain, "retain")
        drawn = np.random.default_rng(derive_seed(job.seed, "curvature")).permutation(len(job.retain))[: method.samples]
        self.measured = self.losses(job.retain, "retain", np.sort(drawn))

    def losses(self, dataset: Dataset, purpose: str, chosen: np.ndarray | None = None) -> SampleLosses:
        """The losses of samples in the space of the weights that may move."""
        seed, size = derive_seed(self.job.seed, purpose), self.method.batch_size
        return SampleLosses(self.model, self.space, dataset, seed, chosen=chosen, batch_size=size)

    @cached_property
    def product(self) -> Product:
        """v -> A v."""
        return damped(self.method.curvature, self.measured, self.method.damping)


class _Records:
    def __init__(self, kept: list[dict[str, Any]], log: Log | None) -> None:
        self.kept, self.log = kept, log

    def add(self, record: dict[str, Any]) -> None:
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


def _keep(path: Path, state: ConjugateGradients, step: int, fingerprint: str) -> None:
    scale = torch.tensor(state.scale, dtype=torch.float64)
    tensors = {"solution": state.solution, "residual": state.residual, "direction": state.direction, "scale": scale}
    keep(path, tensors, step, fingerprint)


def _restored(path: Path, fingerprint: str) -> tuple[ConjugateGradients, int]:
    tensors, step = restored(path, fingerprint)
    scale = float(tensors.pop("scale"))
    return ConjugateGradients(**tensors, scale=scale), step


def _on(state: ConjugateGradients, view: View) -> ConjugateGradients:
    """The state on the model's device."""
    device = view.model.device
    solution, residual, direction = (t.to(device) for t in (state.solution, state.residual, state.direction))
    return ConjugateGradients(solution, residual, direction, state.scale)


def _tell_negative(method: OneStep, done: int) -> None:
    """Conjugate gradients ended at a direction along which the curvature is not positive."""
    what = f"the curvature ({method.curvature}, damping {method.damping:g}) is not positive along direction {done + 1}"
    advice = "raise --damping, or use --curvature woodfisher"
    if done == 0:
        raise DivergedError(f"{what}, so there is no step to take: {advice}", 0)
    log_user(f"{what}: the solution is that of {done} iterations; {advice}")
