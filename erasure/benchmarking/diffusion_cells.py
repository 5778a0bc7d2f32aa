"""Cells of diffusion models: an erasure, measured beside the original from the same seeds, and a strip of its images.

A cell's weights and images are removed after it was measured, unless the caller keeps them. Its run.json, its log, its
numbers and its strip stay, and the next call finds them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erasure.benchmarking.cells import Cell, Cells, settings_of, short
from erasure.benchmarking.plan import ORIGINAL, BenchmarkPlan, Row, Scenario
from erasure.benchmarking.result import CellResult
from erasure.core.distributed import device, is_main, world
from erasure.core.errors import DivergedError, OptionError, suggestion
from erasure.core.logging import log_user
from erasure.core.run_dir import read_record
from erasure.data.dataset import fit
from erasure.data.images import grid, write_png
from erasure.erasing.erase import EraseRequest, erase
from erasure.erasing.targets import ForgetTarget, TargetSpec, target_of
from erasure.erasing.targets.concept import ConceptTarget
from erasure.evaluation.measure import measured
from erasure.evaluation.outputs import ModelOutputs, Part
from erasure.evaluation.prompt_outputs import PromptOutputs, unseen_prompts
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import DiffusionModel, Model, load_model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.sampling.draw import SamplingOptions

SHOWN: dict[Part, int] = {"forget": 5, "retain": 12}  # images of a strip
SIDE = 96  # pixels of an image in a strip, at most
HEAVY = ("model", "samples", "mask.safetensors", "checkpoint.safetensors")


class SeenImages(NamedTuple):
    """Outputs for all prompts or classes, and the same or more of them for what was to be forgotten."""

    every: ModelOutputs
    forgotten: ModelOutputs


class ImageCounts(NamedTuple):
    """How many images of what is to be forgotten, at least, and how many prompts for it that no method was given."""

    num_forgotten: int = 0
    num_unseen: int = 0


class Erasures(Cells):
    """The cells of a diffusion model: the original, and one erasure for each row."""

    def __init__(
        self, plan: BenchmarkPlan, folder: Path, scenario: Scenario, seed: int, keep_models: bool = False
    ) -> None:
        super().__init__(folder, scenario, seed)
        self._source, self._keep = scenario.model or plan.model, keep_models
        self._evaluation, self._counts = evaluation_of(plan, seed)
        self._spec = TargetSpec(
            forget=scenario.forget or None,
            concept=scenario.concept or None,
            anchor=scenario.anchor,
            retain=scenario.retain,
            data=plan.data or None,
            data_dir=plan.data_dir,
            image_size=plan.image_size,
            training_images={**plan.training_images, **scenario.training_images},
        )

    def cells(self, rows: Sequence[Row]) -> list[Cell]:
        """The original, then one cell for each of `rows`."""
        return [self._original(), *(self._erased(row) for row in rows)]

    @cached_property
    def _model(self) -> DiffusionModel:
        model = load_model(self._source).to(device())
        if not isinstance(model, DiffusionModel):
            raise OptionError(f"{self._source} is a {model.family}: a plan for diffusion models needs a generator")
        return model

    @cached_property
    def _target(self) -> ForgetTarget:
        target = target_of(self._model, self._spec, self.seed)
        target.need_forget()
        target.prepare(self._model)
        return target

    @cached_property
    def _about(self) -> dict[str, Any]:
        """What every cell depends on, in whatever folder."""
        return {"model": self._model.hash, "target": self._target.settings, "seed": self.seed}

    @cached_property
    def _evaluation_key(self) -> str:
        return short({**self._evaluation.as_json(), **self._counts._asdict()})

    @cached_property
    def _before(self) -> SeenImages:
        return self._seen(self._model, self._originals / "samples", None)

    @property
    def _originals(self) -> Path:
        return self.folder / f"original-{short(self._about | {'evaluation': self._evaluation_key})}"

    def _original(self) -> Cell:
        path, samples = self._originals / "original.json", self._originals / "samples"
        found = self.recorded(path, lambda: self._measured(self._before, self._model, samples, path))
        return self.cell(ORIGINAL, found, path)

    def _erased(self, row: Row) -> Cell:
        """Erase and measure, unless that was done before."""
        request = EraseRequest(
            model=self._source,
            target=self._spec,
            method=row.method,
            mask=row.mask,
            preset=row.preset,
            seed=self.seed,
            options=row.options_in(self.scenario),
            saliency=row.saliency,
            evaluate=False,
        )
        out = self.folder / f"{row.slug}-{short(self._about | {**settings_of(request), 'target': None, 'model': None})}"
        path = out.parent / f"{out.name}-{self._evaluation_key}.json"
        known = path.is_file()
        cell = self.tried(row.name, path, out / "model", lambda: self._made(request, out, path))
        if (
            not known and not self._keep and is_main()
        ):  # every process has read the weights, or agreed that the method failed
            _lighten(out)
        if self._keep and cell.model is not None and is_main() and _is_light(out):
            log_user(f"{row.name}: its weights were removed when it was measured: remove {path} to erase again")
        return cell

    def _made(self, request: EraseRequest, out: Path, path: Path) -> CellResult:
        before = self._before
        if is_main() and _is_light(out):
            shutil.rmtree(out)
        world().wait_for_everyone()
        try:
            erase(request, out, report=False)
        except DivergedError as error:
            raise DivergedError(str(error.__cause__ or error), error.step) from error
        world().wait_for_everyone()  # the main process has saved the model
        record = read_record(out / "run.json")
        model = load_model(out).to(device())
        self._target.prepare(model)
        samples = out / "samples"
        found = self._measured(self._seen(model, samples, before), model, samples, path)
        return {"mask": record["settings"]["mask"], **record["trained"], **found}

    def _seen(self, model: Model, folder: Path, original: SeenImages | None) -> SeenImages:
        """Outputs of a model, its images in `folder`; raises OptionError without a classifier to label them."""
        every = self._target.outputs(model, self._evaluation, folder, original.every if original else None)
        if every.labeler_hash is None:
            raise OptionError(
                f"there is no classifier to label images of {self.scenario.what} by {self._source}: name one in "
                "[evaluation], and give prompts that say what they show"
            )
        if not isinstance(every, PromptOutputs):
            return SeenImages(every, every)
        rows = tuple(row for row in every.rows if row in every.concept.forget)
        count = -(-self._counts.num_forgotten // max(1, len(rows)))
        if not rows or count <= every.count:
            return SeenImages(every, every)
        evaluation = self._evaluation.replaced({"num_images": count})
        forgotten = self._target.outputs(model, evaluation, folder, original.forgotten if original else None)
        assert isinstance(forgotten, PromptOutputs)
        return SeenImages(every, forgotten.of_rows(rows))

    def _unseen(self, model: Model, folder: Path) -> ModelOutputs:
        """Outputs for prompts that show what is erased in other words, or beside other things, than methods were given.

        The model keeps these prompts.
        """
        target = self._target
        if not isinstance(target, ConceptTarget) or not isinstance(model, StableDiffusion):
            raise OptionError(
                f"num_unseen needs prompts, and {self._source} takes classes: leave it out of [evaluation]"
            )
        rows = unseen_prompts(target.concept, target.reference, self._counts.num_unseen, self.seed)
        other = ConceptTarget(model, replace(target.concept, forget=rows), self._spec, self.seed)
        other.prepare(model)
        outputs = other.outputs(model, self._evaluation.replaced({"num_images": 1}), folder)
        assert isinstance(outputs, PromptOutputs)
        return outputs.of_rows(rows)

    def _measured(self, seen: SeenImages, model: Model, folder: Path, path: Path) -> CellResult:
        """Measure, and write the strip of images beside `path`; images still to be generated go to `folder`."""
        found = measured(seen.every, self._evaluation.metrics)
        if seen.forgotten is not seen.every and "ua" in found.metrics:
            found.metrics["ua"] = measured(seen.forgotten, ("ua",)).metrics["ua"]
        picture, names = strip(seen.every)
        if self._counts.num_unseen:
            found.metrics["ua_unseen"] = measured(self._unseen(model, folder / "unseen"), ("ua",)).metrics["ua"]
            self._target.prepare(model)
        if is_main():
            write_png(path.with_suffix(".png"), picture)
        return {
            "metrics": {name: score.to_dict() for name, score in found.metrics.items()},
            "not_measured": found.not_measured,
            "shown": names,
            "strip": f"{path.relative_to(self.folder.parent.parent).with_suffix('.png')}",
        }


def evaluation_of(plan: BenchmarkPlan, seed: int = 0) -> tuple[EvaluationConfig, ImageCounts]:
    """How a plan's cells are evaluated; raises OptionError for an unknown entry of [evaluation]."""
    given: dict[str, Any] = dict(plan.evaluation)
    counts = ImageCounts(**{name: given.pop(name) for name in ImageCounts._fields if name in given})
    known = {field.name for kind in (EvaluationConfig, SamplingOptions) for field in fields(kind)} - {
        "samples",
        "sample_seed",
        "retrained",
    }
    for name in given:
        if name not in known:
            raise OptionError(f"[evaluation] has no entry {name!r}{suggestion(name, {*known, *ImageCounts._fields})}")
    given["metrics"] = tuple(given.get("metrics", ()))
    evaluation = EvaluationConfig(sample_seed=seed).replaced(given)
    evaluation.check()
    return evaluation, counts


def strip(outputs: ModelOutputs) -> tuple[np.ndarray, dict[str, list[str]]]:
    """One row of images (h, w, c), forgotten ones first, and for each part the prompts or classes that they show.

    Prompts or classes are spread evenly, and two models show the same ones.
    """
    samples, names = outputs.samples, outputs.task.class_names
    halves: list[np.ndarray] = []
    shown: dict[str, list[str]] = {}
    for part, count in SHOWN.items():
        labels = samples.labels[outputs.chosen(part)]
        images = samples.images[outputs.chosen(part)]
        kinds = list(dict.fromkeys(labels.tolist()))
        chosen = [kinds[i * len(kinds) // count] for i in range(count)] if len(kinds) > count else kinds
        each = max(1, count // max(1, len(chosen)))
        picked = [i for kind in chosen for i in np.flatnonzero(labels == kind)[:each]]
        small = np.stack([fit(images[i], min(SIDE, images.shape[1])) for i in picked])
        halves.append(grid([small], max(1, 32 // small.shape[1])))
        shown[part] = [names[kind] for kind in chosen]
    space = np.full((halves[0].shape[0], 12, halves[0].shape[2]), 255, np.uint8)
    return np.concatenate([halves[0], space, halves[1]], axis=1), shown


def _is_light(out: Path) -> bool:
    """Whether a run ended and its weights were removed since."""
    path = out / "run.json"
    return path.is_file() and not (out / "model").is_dir() and read_record(path)["status"] != "running"


def _lighten(out: Path) -> None:
    """Remove a run's weights and images."""
    for name in HEAVY:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def cost(result: CellResult) -> dict[str, float]:
    """Peak memory of an erasure in MB (10^6 bytes), and the percentage of weights that changed."""
    found = {"changed": 100.0 * result["changed_weights"] / result["total_weights"]}
    return found | ({"peak_memory": result["peak_memory"] / 1e6} if "peak_memory" in result else {})
