"""Draw images from a model or a run into a folder, one PNG each and a grid, resumable."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from erasure.errors import NotApplicableError, OptionError
from erasure.images import grid, write_png
from erasure.models import DiffusionModel, load_model, located
from erasure.processes import agreed, device
from erasure.run import Run, is_main
from erasure.samples import SampleSettings, check_classes, draw
from erasure.task import class_index

GRID_COLUMNS = 16


def generate(
    given: str, classes: str | None, out: str | Path, settings: SampleSettings, seed: int = 0
) -> dict[str, Any]:
    """Images of each class ("0,cat"; None: all) as `<out>/<class>/NNNNN.png`, and `<out>/grid.png`.

    A killed run continues with the images that are missing.
    """
    settings.check()
    model = load_model(given)
    if not isinstance(model, DiffusionModel):
        raise NotApplicableError(f"{given} is a {model.family}: only generators draw images")
    labels = _labels(model, classes)
    model.to(device())
    recorded = {
        "model": located(given),
        "model_hash": model.hash,
        "classes": labels,
        "seed": seed,
        **asdict(settings),
    }
    with Run(out, "generate", recorded) as run:
        run.document = agreed(run.document)
        samples = draw(model, labels, settings, seed, run.folder)
        rows = [
            samples.images[samples.labels == label][:GRID_COLUMNS] for label in dict.fromkeys(samples.labels.tolist())
        ]
        if is_main():
            write_png(run.folder / "grid.png", grid(rows, scale=max(1, 32 // samples.images.shape[1])))
        result = {
            "out": str(run.folder),
            "grid": str(run.folder / "grid.png"),
            "images": len(samples.images),
            "classes": [model.class_names[label] if model.class_names else str(label) for label in labels],
        }
        run.finish(result)
        return result


def _labels(model: DiffusionModel, classes: str | None) -> list[int]:
    known = model.class_names or tuple(str(i) for i in range(model.num_classes))
    chosen = [class_index(part, known) for part in (classes or "").split(",") if part.strip()]
    if classes is not None and not chosen:
        raise OptionError("--classes names no class: leave it out to draw them all")
    chosen = list(dict.fromkeys(chosen))
    check_classes(model, chosen)
    return chosen or (list(range(len(known))) if model.conditional else [])
