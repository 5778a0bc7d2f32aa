"""Train a model from nothing: `erasure train ddpm` and `erasure train classifier`.

A killed training resumes with the same bits. It leaves a folder that `erasure` and the stock library load, a model card
with the command, and pictures of the loss and of samples.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erasure import plots
from erasure.data import Dataset, load_dataset, placed
from erasure.errors import DataError
from erasure.images import grid, to_float, to_uint8, write_png
from erasure.models import Model
from erasure.models.classifier import Classifier
from erasure.models.ddpm import DDPM
from erasure.optimise import Outcome
from erasure.processes import agreed, device
from erasure.recipe import ClassifierRecipe, Recipe, fit, new_model
from erasure.run import Run, is_main, write_text
from erasure.seeds import derive


def train(
    recipe: Recipe,
    data: str,
    out: str | Path,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a model of `recipe` on `data` into the folder `out`; returns what the run recorded as its result.

    `limit` keeps the first images only, as even over the classes as the data allows. A killed run continues from its
    last checkpoint and ends with the same bits. With `resume`, `out` must hold a run to resume.
    """
    dataset = load_dataset(data, "train", data_dir, image_size)
    dataset = dataset.first(limit) if limit else dataset
    dataset.check()
    recipe.check(dataset)
    if isinstance(recipe, ClassifierRecipe):
        test = load_dataset(data, "test", data_dir, image_size)
        if test.class_names != dataset.class_names:
            raise DataError(f"{data}: the test split has other classes than the train split")
    source = {
        "data": placed(data),
        "data_dir": str(Path(data_dir).resolve()) if data_dir else None,
        "image_size": image_size,
        "limit": limit,
    }
    settings = {"kind": recipe.kind, **source, "data_hash": dataset.hash, "seed": seed, "options": asdict(recipe)}
    with Run(out, "train", settings, must_exist=resume) as run:
        run.document = agreed(run.document)
        if run.done:
            return run.result
        model = new_model(recipe, dataset, seed).to(device())
        model.info["recipe"] = {**source, "seed": seed, "kind": recipe.kind, **asdict(recipe)}
        run.update(device=str(model.device), num_weights=sum(p.numel() for p in model.network.parameters()))
        outcome = fit(model, recipe, dataset, seed, folder=run.folder, fingerprint=run.fingerprint)
        if recipe.weights_dtype == "float16":
            model.network.half().float()  # what is measured and shown from here on is what the file will hold
        result = {"seconds": outcome.seconds, "steps": recipe.steps, "loss": _final_loss(outcome), "hash": model.hash}
        if isinstance(model, Classifier):
            result["test_accuracy"] = accuracy(model, test)
        model.info["training"] = result
        if is_main():
            _publish(model, outcome, run, seed)
            run.finish(result)
            (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return result


def accuracy(model: Classifier, dataset: Dataset) -> float:
    """Percentage of `dataset` that the classifier labels rightly."""
    logits, _ = model.describe(to_float(dataset.images))
    return 100.0 * float((logits.argmax(1).numpy() == dataset.labels).mean())


def _final_loss(outcome: Outcome) -> float | None:
    """Mean loss of the last tenth of the steps."""
    last = outcome.records[-max(1, len(outcome.records) // 10) :]
    return float(np.mean([record["loss"] for record in last])) if last else None


def _publish(model: Model, outcome: Outcome, run: Run, seed: int) -> None:
    """Write the model, its card, the loss curve and, for a generator, a grid of samples."""
    model.save(run.folder / "model")
    points = [(float(record["step"]), float(record["loss"])) for record in outcome.records]
    smooth = plots.smoothed(points, max(1, len(points) // 100))
    plots.write_png(plots.curve({"loss": smooth}, "step", "training loss"), run.folder / "model" / "loss.png")
    if isinstance(model, DDPM):
        classes = model.class_names if model.conditional else ("",) * 4
        labels = torch.arange(len(classes)).repeat_interleave(8)
        images = to_uint8(model.generate(labels, [derive(seed, "grid", i) for i in range(len(labels))]))
        rows = [images[i * 8 : i * 8 + 8] for i in range(len(classes))]
        write_png(run.folder / "model" / "samples.png", grid(rows, scale=max(1, 48 // images.shape[1])))
    write_text(run.folder / "model" / "README.md", card(model, run.document))


def card(model: Model, document: dict[str, Any]) -> str:
    """The model card: what it is, how it was made, what it scored."""
    info, result = model.info, model.info["training"]
    lines = [
        f"# {model.family} on {info['data']}",
        "",
        f"{document['num_weights']:,} weights, images of {info['image_size']} x {info['image_size']} pixels, "
        f"{info['channels']} channel(s), classes: {', '.join(info['class_names'])}.",
        "",
        "Made by",
        "",
        f"    {shlex.join(document['command'])}",
        "",
        f"with seed {info['recipe']['seed']} on {document['device']}, in {result['seconds']:.0f} s "
        f"({', '.join(f'{name} {version}' for name, version in document['versions'].items())}).",
        f"Loss over the last tenth of {result['steps']:,} steps: {result['loss'] or 0:.4f} (`loss.png`).",
    ]
    if "test_accuracy" in result:
        lines.append(f"Accuracy on the test split: {result['test_accuracy']:.2f} %.")
    if model.family == "ddpm":
        lines.append("One row of `samples.png` is one class.")
    lines.append("`erasure.json` holds the whole recipe. Licence: Apache-2.0.")
    return "\n".join(lines) + "\n"
