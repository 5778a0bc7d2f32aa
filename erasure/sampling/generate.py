"""Draw images from a model or a run into a folder, one PNG each and a grid, resumable.

Class-conditional models draw classes, text-to-image models draw prompts, also beside another model from the same seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from erasure.core.distributed import agreed, device, is_main
from erasure.core.errors import NotApplicableError, OptionError
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


def generate(
    given: str, classes: str | None, out: str | Path, settings: SamplingOptions, seed: int = 0
) -> dict[str, Any]:
    """Images of each class ("0,cat"; None: all) as `<out>/<class>/NNNNN.png`, and `<out>/grid.png`.

    A killed run continues with the images that are missing.
    """
    settings.check()
    model = load_model(given)
    if not isinstance(model, DiffusionModel):
        raise NotApplicableError(f"{given} is a {model.family}: only generators draw images")
    if isinstance(model, StableDiffusion):
        raise OptionError(f"{given} draws prompts: give --prompt TEXT (as often as you like) or --prompts FILE")
    labels = _labels(model, classes)
    model.to(device())
    recorded = {"model": located(given), "model_hash": model.hash, "classes": labels, "seed": seed, **asdict(settings)}
    with RunDir(out, "generate", recorded) as run:
        run.document = agreed(run.document)
        samples = draw(model, labels, settings, seed, run.folder)
        rows = [
            samples.images[samples.labels == label][:GRID_COLUMNS] for label in dict.fromkeys(samples.labels.tolist())
        ]
        return _finished(run, rows, len(samples.images), classes=[_class_name(model, label) for label in labels])


def generate_prompts(
    given: str,
    rows: Sequence[PromptRow],
    out: str | Path,
    settings: SamplingOptions,
    seed: int = 0,
    compare: str | None = None,
) -> dict[str, Any]:
    """Images of each prompt as `<out>/<number prompt>/NNNNN.png`, and `<out>/grid.png`, a row a prompt.

    A row's own seed and guidance rank before `seed` and the settings'. With `compare`, that model draws from the same
    seeds into `<out>/compared`, and the grid has its images left, the model's right.
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
        return _finished(run, pictures, sum(map(len, halves)), prompts=[row.prompt for row in rows])


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
        raise NotApplicableError(f"{given} is a {model.family} model, which reads no prompts: give --classes instead")
    return model


def _finished(run: RunDir, rows: Sequence[np.ndarray], count: int, **drawn: list[str]) -> dict[str, Any]:
    """Write the grid and close the run."""
    if is_main():
        write_png(run.folder / "grid.png", grid(rows, scale=max(1, 32 // rows[0].shape[1])))
    result = {"out": str(run.folder), "grid": str(run.folder / "grid.png"), "images": count, **drawn}
    run.finish(result)
    return result


def _class_name(model: DiffusionModel, label: int) -> str:
    return model.class_names[label] if model.class_names else str(label)


def _labels(model: DiffusionModel, classes: str | None) -> list[int]:
    known = model.class_names or tuple(str(i) for i in range(model.num_classes))
    chosen = [class_index(part, known) for part in (classes or "").split(",") if part.strip()]
    if classes is not None and not chosen:
        raise OptionError("--classes names no class: leave it out to draw them all")
    chosen = list(dict.fromkeys(chosen))
    check_classes(model, chosen)
    return chosen or (list(range(len(known))) if model.conditional else [])
