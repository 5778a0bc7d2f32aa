"""Generate images with a model or a run into a folder, one PNG each and a grid, resumable.

Class-conditional models take classes, text-to-image models take prompts, also beside another model from the same seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from erasure.core.distributed import agreed, device, is_main
from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.records import Record, stored
from erasure.core.rng import derive_seed
from erasure.core.run_dir import RunDir
from erasure.data.images import grid, write_png
from erasure.data.task import class_index
from erasure.models import DiffusionModel, load_model, located
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.prompt_table import PromptRow
from erasure.sampling.draw import (
    IMAGES_A_PROMPT,
    PlannedSample,
    SamplingOptions,
    check_classes,
    draw,
    draw_items,
    path_of,
)

GRID_COLUMNS = 16
COMPARED_COLUMNS = 4


@dataclass(frozen=True)
class GenerateResult(Record):
    """The folder, its grid.png, how many images there are, and the classes or prompts that were asked for."""

    out: str
    grid: str
    images: int
    classes: tuple[str, ...] | None = stored(optional=True)
    prompts: tuple[str, ...] | None = stored(optional=True)


def generate(
    given: str, classes: str | None, out: str | Path, settings: SamplingOptions, seed: int = 0
) -> GenerateResult:
    """Write images of each class as `<out>/<class>/NNNNN.png`, and `<out>/grid.png`, a row for each class.

    A killed run continues with the images that are missing.

    Args:
        given: a shipped name, a folder, a run, or a hub id of a class-conditional or unconditional model.
        classes: indices or names, joined by commas, such as "0,cat"; None for all.
        out: the folder.
        settings: how images are sampled.
        seed: the seed of the first noise; image i of a class depends on the seed, the class and i alone.

    Raises:
        NotApplicableError: the model is a classifier, or takes no classes.
        OptionError: the model takes prompts, or has no such class.
    """
    settings.check()
    model = load_model(given)
    if not isinstance(model, DiffusionModel):
        raise NotApplicableError(f"{given} is a {model.family}: it generates no images")
    if isinstance(model, StableDiffusion):
        raise OptionError(f"{given} takes prompts: give --prompt TEXT (as often as you like) or --prompts FILE")
    labels = _labels(model, classes)
    model.to(device())
    recorded = {"model": located(given), "model_hash": model.hash, "classes": labels, "seed": seed, **asdict(settings)}
    with RunDir(out, "generate", recorded) as run:
        run.document = agreed(run.document)
        samples = draw(model, labels, settings, seed, run.folder)
        rows = [
            samples.images[samples.labels == label][:GRID_COLUMNS] for label in dict.fromkeys(samples.labels.tolist())
        ]
        result = _result(run, len(samples.images), classes=tuple(_class_name(model, label) for label in labels))
        return _finished(run, rows, result)


def generate_prompts(
    given: str,
    rows: Sequence[PromptRow],
    out: str | Path,
    settings: SamplingOptions,
    seed: int = 0,
    compare: str | None = None,
) -> GenerateResult:
    """Write images of each prompt as `<out>/<number prompt>/NNNNN.png`, and `<out>/grid.png`, a row for each prompt.

    Args:
        given: a shipped name, a folder, a file, a run, or a hub id of a text-to-image model.
        rows: the prompts; a row's own seed and guidance rank before `seed` and those of `settings`.
        out: the folder.
        settings: how images are sampled.
        seed: the seed of the first noise.
        compare: another model that generates from the same seeds into `<out>/compared`; the grid has its images left.

    Raises:
        NotApplicableError: a model takes no prompts.
    """
    settings.check()
    models = [_text_model(name) for name in ([given] if compare is None else [compare, given])]
    recorded = {
        "model": located(given),
        "model_hash": models[-1].hash,
        "compare": located(compare) if compare else None,
        "compare_hash": models[0].hash if compare else None,
        "prompts": [asdict(row) for row in rows],
        "seed": seed,
        **asdict(settings),
    }
    for model in models:
        model.to(device()).set_prompts([row.prompt for row in rows])
    with RunDir(out, "generate", recorded) as run:
        run.document = agreed(run.document)
        folders = [run.folder] if compare is None else [run.folder / "compared", run.folder]
        halves = [_drawn(*pair, rows, settings, seed) for pair in zip(models, folders, strict=True)]
        columns = GRID_COLUMNS if compare is None else COMPARED_COLUMNS
        each = len(halves[0]) // len(rows)
        pictures = [
            np.concatenate([half[i * each : (i + 1) * each][:columns] for half in halves]) for i in range(len(rows))
        ]
        return _finished(run, pictures, _result(run, sum(map(len, halves)), prompts=tuple(row.prompt for row in rows)))


def _drawn(
    model: StableDiffusion, folder: Path, rows: Sequence[PromptRow], settings: SamplingOptions, seed: int
) -> np.ndarray:
    """Images (rows * num_images, h, w, 3), in the order of the rows; rows of one guidance share batches."""
    count = settings.num_images or IMAGES_A_PROMPT
    images: list[Any] = [None] * len(rows) * count
    for guidance in dict.fromkeys(row.guidance_scale for row in rows):
        chosen = [i for i, row in enumerate(rows) if row.guidance_scale == guidance]
        places = [(i, j) for i in chosen for j in range(count)]
        items = [PlannedSample(i, _seed_of(rows[i], seed, j), path_of(model, folder, i, j)) for i, j in places]
        own = settings if guidance is None else replace(settings, guidance_scale=guidance)
        for (i, j), image in zip(places, draw_items(model, items, own).images, strict=True):
            images[i * count + j] = image
    return np.stack(images)


def _seed_of(row: PromptRow, seed: int, index: int) -> int:
    return derive_seed(seed, "sample", row.prompt, index) if row.seed is None else row.seed + index


def _text_model(given: str) -> StableDiffusion:
    model = load_model(given)
    if not isinstance(model, StableDiffusion):
        raise NotApplicableError(f"{given} is a {model.family} model, which takes no prompts: give --classes instead")
    return model


def _result(run: RunDir, count: int, **asked: tuple[str, ...]) -> GenerateResult:
    return GenerateResult(str(run.folder), str(run.folder / "grid.png"), count, **asked)


def _finished(run: RunDir, rows: Sequence[np.ndarray], result: GenerateResult) -> GenerateResult:
    """Write the grid and close the run."""
    if is_main():
        write_png(run.folder / "grid.png", grid(rows, scale=max(1, 32 // rows[0].shape[1])))
    run.finish(result.to_dict())
    return result


def _class_name(model: DiffusionModel, label: int) -> str:
    return model.class_names[label] if model.class_names else str(label)


def _labels(model: DiffusionModel, classes: str | None) -> list[int]:
    known = model.class_names or tuple(str(i) for i in range(model.num_classes))
    chosen = [class_index(part, known) for part in (classes or "").split(",") if part.strip()]
    if classes is not None and not chosen:
        raise OptionError("--classes names no class: leave it out for all of them")
    chosen = list(dict.fromkeys(chosen))
    check_classes(model, chosen)
    return chosen or (list(range(len(known))) if model.conditional else [])
