"""Cells of a benchmark: one row of one scenario under one seed, each a run folder that is named after its settings.

A killed benchmark continues where it stopped, and one with other options reuses every cell that has not changed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from erasure.benchmarking.plan import AGAIN, ORIGINAL, RETRAIN, BenchmarkPlan, Row, Scenario
from erasure.benchmarking.result import CellResult
from erasure.core import config
from erasure.core.distributed import agreed, device, is_main, world
from erasure.core.errors import DivergedError, NotApplicableError
from erasure.core.files import read_json, write_json
from erasure.core.logging import log_user
from erasure.core.rng import derive_seed
from erasure.core.run_dir import fingerprint, read_record
from erasure.data import placed
from erasure.erasing.erase import EraseRequest, erase
from erasure.erasing.targets import ForgetTarget, TargetSpec, target_of
from erasure.evaluation.measure import measured
from erasure.evaluation.outputs import OF_CLASSIFIERS, ModelOutputs, Split
from erasure.evaluation.settings import EvaluationConfig
from erasure.formats.safetensors_io import read_tensors, write_tensors
from erasure.models import Model, load_model
from erasure.training.recipes import ClassifierRecipe
from erasure.training.train import train

SEEDS = 1 << 31  # seeds derived for Retrain stay in a range that every library takes


@dataclass(frozen=True)
class Cell:
    """One row of one scenario under one seed: the model's folder and what was measured, or why it was not."""

    scenario: str
    row: str
    seed: int
    result: CellResult
    model: Path | None

    @property
    def values(self) -> dict[str, float]:
        """The values of its metrics by name; empty when there is no model."""
        return {name: score["value"] for name, score in self.result.get("metrics", {}).items()}


class Cells(ABC):
    """The cells of one scenario under one seed, in one folder."""

    def __init__(self, folder: Path, scenario: Scenario, seed: int) -> None:
        self.scenario, self.seed = scenario, seed
        self.folder = folder / scenario.name / f"seed-{seed}"

    @abstractmethod
    def cells(self, rows: Sequence[Row]) -> list[Cell]:
        """The rows that every table has, then one cell for each of `rows`, computed or found.

        A method that diverged or does not apply gets a cell that says so; other errors are raised.
        """

    def recorded(self, path: Path, made: Callable[[], CellResult]) -> CellResult:
        """What is recorded in `path`; else all processes compute it with `made`, and the main one writes it."""
        known: CellResult | None = agreed(cast(CellResult, read_json(path)) if is_main() and path.is_file() else None)
        if known is not None:
            return known
        began = time.perf_counter()
        found = made()
        found["took"] = time.perf_counter() - began
        if is_main():
            write_json(path, found)
        return agreed(found)

    def tried(self, name: str, path: Path, model: Path, made: Callable[[], CellResult]) -> Cell:
        """The cell of a row, recorded in `path`; if its method fails it says why."""

        def attempted() -> CellResult:
            log_user(f"{self.scenario.name}, seed {self.seed}: {name}")
            try:
                return made()
            except DivergedError as error:
                return {"failed": str(error)}

        try:
            return self.cell(name, self.recorded(path, attempted), model)
        except NotApplicableError as error:
            return self.cell(name, {"failed": str(error)}, model)

    def cell(self, name: str, result: CellResult, model: Path) -> Cell:
        """The cell of a row; a failed one has no model."""
        return Cell(self.scenario.name, name, self.seed, result, None if "failed" in result else model)


class Column(Cells):
    """The cells of a classifier that is trained first; `forget_seed` chooses a random forget set (default: `seed`)."""

    def __init__(
        self, plan: BenchmarkPlan, folder: Path, scenario: Scenario, seed: int, forget_seed: int | None = None
    ) -> None:
        super().__init__(folder, scenario, seed)
        self.trained = trained_original(plan, folder, scenario, seed)
        self.forget = scenario.forget_under(seed if forget_seed is None else forget_seed)

    def cells(self, rows: Sequence[Row]) -> list[Cell]:
        """The original, Retrain twice, then one cell for each of `rows`."""
        retrain = Row(RETRAIN, RETRAIN)
        found = [self._original()]
        found += [self._erased(replace(retrain, name=name), self._seed_of(name)) for name in (RETRAIN, AGAIN)]
        return found + [self._erased(row, self.seed) for row in rows]

    def _seed_of(self, name: str) -> int:
        """A seed for Retrain: it begins from other weights than the original, and the second one from others again."""
        return derive_seed(self.seed, name) % SEEDS

    @cached_property
    def _model(self) -> Model:
        return load_model(self.trained / "model").to(device())

    @cached_property
    def _target(self) -> ForgetTarget:
        return target_of(self._model, TargetSpec(forget=self.forget), self.seed)

    @cached_property
    def _outputs(self) -> ModelOutputs:
        return self._outputs_of(self._model, None)

    def _original(self) -> Cell:
        path = self.folder / f"original-{short({'trained': self.trained.name, 'forget': self.forget})}.json"
        found = self.recorded(path, lambda: {**self._scores(self._outputs), "seconds": 0.0, "mask_seconds": 0.0})
        return self.cell(ORIGINAL, found, self.trained / "model")

    def _erased(self, row: Row, seed: int) -> Cell:
        """Erase and measure, unless that was done before."""
        request = EraseRequest(
            model=str(self.trained / "model"),
            target=TargetSpec(forget=self.forget),
            method=row.method,
            mask=row.mask,
            preset=row.preset,
            seed=seed,
            options=row.options_in(self.scenario),
            saliency=row.saliency,
            evaluation=EvaluationConfig(metrics=OF_CLASSIFIERS),
            evaluate=False,
        )
        out = self.folder / f"{row.slug}-{short({**settings_of(request), 'model': self.trained.name})}"
        path = out.parent / f"{out.name}.json"
        return self.tried(row.name, path, out / "model", lambda: self._made(request, out))

    def _made(self, request: EraseRequest, out: Path) -> CellResult:
        erase(request, out, report=False)
        world().wait_for_everyone()  # the main process has saved the model
        record = read_record(out / "run.json")
        scores = self._scores(self._outputs_of(load_model(out).to(device()), self._outputs))
        return {"mask": record["settings"]["mask"], **record["trained"], **scores}

    def _outputs_of(self, model: Model, original: ModelOutputs | None) -> ModelOutputs:
        self._target.prepare(model)
        return self._target.outputs(model, EvaluationConfig(sample_seed=self.seed), self.folder, original)

    def _scores(self, outputs: ModelOutputs) -> CellResult:
        return {"metrics": measured(outputs, OF_CLASSIFIERS).to_dict()["metrics"]}

    def margins(self, cell: Cell) -> dict[str, np.ndarray]:
        """The margins of a cell's model on the forget set and on the test split, (n,) each; computed once."""
        assert cell.model is not None
        path = self.folder / f"margins-{short({'model': cell.model.parent.name, 'forget': self.forget})}.safetensors"
        if agreed(path.is_file()):
            return {part: tensor.numpy() for part, tensor in read_tensors(path)[0].items()}
        outputs = self._outputs_of(load_model(cell.model).to(device()), None)
        parts: tuple[Split, ...] = ("forget", "test")
        found: dict[str, np.ndarray] = {part: outputs.predictions(part).margins for part in parts}
        if is_main():
            write_tensors(path, {part: torch.from_numpy(values) for part, values in found.items()})
        return found


def settings_of(request: EraseRequest) -> dict[str, Any]:
    """A request as plain values, from which its cell is named."""
    return {**asdict(request), "evaluation": request.evaluation.as_json()}


def short(settings: Mapping[str, Any]) -> str:
    """The settings as part of a file's name."""
    return fingerprint(settings)[:10]


def trained_original(plan: BenchmarkPlan, folder: Path, scenario: Scenario, seed: int) -> Path:
    """The run folder of the trained original, shared by all scenarios that train it alike."""
    recipe = config.build(ClassifierRecipe, "[train]", plan.train, scenario.train)
    source = {"data": placed(plan.data), "data_dir": plan.data_dir, "limit": plan.limit, **asdict(recipe)}
    out = folder / "originals" / f"seed-{seed}-{short({**source, 'image_size': plan.image_size})}"
    if not (out / "model").is_dir():
        log_user(f"{scenario.name}, seed {seed}: training the original")
    train(recipe, plan.data, out, data_dir=plan.data_dir, image_size=plan.image_size, limit=plan.limit, seed=seed)
    return out
