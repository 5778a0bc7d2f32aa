"""Train a model from random weights: `erasure train ddpm`, `erasure train sd` and `erasure train classifier`.

A killed training continues to the same bits. The result is a folder that `erasure` and the stock library load, with a
model card that has the command, and pictures of the loss and of samples.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erasure.core import plots
from erasure.core.distributed import agreed, device, is_main
from erasure.core.errors import DataError
from erasure.core.files import write_text
from erasure.core.model_card import bullets, model_card
from erasure.core.records import Record, stored
from erasure.core.rng import derive_seed
from erasure.core.run_dir import RunDir, RunRecord
from erasure.data import Dataset, load_dataset, placed
from erasure.data.forget_sets import mislabelled
from erasure.data.images import grid, to_float, to_uint8, write_png
from erasure.models import DiffusionModel, Model
from erasure.models.classifier import Classifier
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.loop import TrainingResult
from erasure.training.recipe_stable_diffusion import reconstruction_error
from erasure.training.recipes import ClassifierRecipe, Recipe


@dataclass(frozen=True)
class TrainResult(Record):
    """Seconds, steps, final loss and hash of a training; test accuracy in percent, or the autoencoder's error."""

    seconds: float
    steps: int
    loss: float | None
    hash: str
    test_accuracy: float | None = stored(optional=True)
    reconstruction_error: float | None = stored(optional=True)


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
) -> TrainResult:
    """Train a model of `recipe` on `data`.

    Args:
        recipe: Kind of model, architecture and training options.
        data: A data set's name, or a folder of images.
        out: The run's folder; a killed run in it continues from its last checkpoint and ends with the same bits.
        data_dir: Where the data set's files are, if not in the current folder.
        image_size: The size in pixels that images are brought to; None: their own.
        limit: Keep the first images only, as evenly over the classes as the data allows.
        seed: Seed of all random numbers.
        resume: Require that `out` has a run to continue.
    """
    dataset, test = _data(recipe, data, data_dir, image_size, limit, seed)
    source = {
        "data": placed(data),
        "data_dir": str(Path(data_dir).resolve()) if data_dir else None,
        "image_size": image_size,
        "limit": limit,
    }
    settings = {"kind": recipe.kind, **source, "data_hash": dataset.hash, "seed": seed, "options": asdict(recipe)}
    with RunDir(out, "train", settings, must_exist=resume) as run:
        run.document = agreed(run.document)
        if run.done:
            return TrainResult.from_dict(run.result, str(run.folder))
        model = recipe.new(dataset, seed).to(device())
        model.info["recipe"] = {**source, "seed": seed, "kind": recipe.kind, **asdict(recipe)}
        run.update(device=str(model.device), num_weights=sum(p.numel() for p in model.network.parameters()))
        outcome = recipe.fit(model, dataset, seed, folder=run.folder, fingerprint=run.fingerprint)
        if recipe.weights_dtype == "float16":
            _round(model)
        result = _measured(model, recipe, outcome, dataset, test)
        model.info["training"] = result.to_dict()
        if is_main():
            _publish(model, outcome, run, dataset, seed)
            run.finish(result.to_dict())
            for checkpoint in run.folder.rglob("checkpoint.safetensors"):
                checkpoint.unlink()
        return result


def _data(
    recipe: Recipe, data: str, data_dir: str | None, image_size: int | None, limit: int | None, seed: int
) -> tuple[Dataset, Dataset]:
    """The checked train split, and the test split for a classifier (for other models the train split again)."""
    dataset = load_dataset(data, "train", data_dir, image_size)
    dataset = dataset.first(limit) if limit else dataset
    dataset.check()
    recipe.check(dataset)
    if not isinstance(recipe, ClassifierRecipe):
        return dataset, dataset
    test = load_dataset(data, "test", data_dir, image_size)
    if test.class_names != dataset.class_names:
        raise DataError(f"{data}: the test split has other classes than the train split")
    if recipe.mislabel:
        dataset, _ = mislabelled(dataset, recipe.mislabel, seed)
    return dataset, test


def _measured(model: Model, recipe: Recipe, outcome: TrainingResult, dataset: Dataset, test: Dataset) -> TrainResult:
    images = dataset.first(500).images
    return TrainResult(
        outcome.seconds,
        recipe.steps,
        _final_loss(outcome),
        model.hash,
        accuracy(model, test) if isinstance(model, Classifier) else None,
        reconstruction_error(model, images) if isinstance(model, StableDiffusion) else None,
    )


def accuracy(model: Classifier, dataset: Dataset) -> float:
    """Percentage of `dataset` that the classifier labels correctly, in every aspect if it has several."""
    logits, _ = model.describe(to_float(dataset.images))
    right = np.ones(len(dataset), dtype=bool)
    if not model.aspects:
        right = logits.argmax(1).numpy() == dataset.labels
    for name, part in (model.blocks(logits) if model.aspects else {}).items():
        right &= part.argmax(1).numpy() == np.array(model.aspects[name].of_class)[dataset.labels]
    return 100.0 * float(right.mean())


def _round(model: Model) -> None:
    """Round weights to half precision, as the files will have them, so that what is measured holds for the files."""
    for module in (model.network, *getattr(model, "parts", {}).values()):
        if isinstance(module, torch.nn.Module):
            module.half().float()


def _final_loss(outcome: TrainingResult) -> float | None:
    """Mean loss of the last tenth of the steps."""
    last = outcome.records[-max(1, len(outcome.records) // 10) :]
    return float(np.mean([record["loss"] for record in last])) if last else None


def _publish(model: Model, outcome: TrainingResult, run: RunDir, dataset: Dataset, seed: int) -> None:
    """Write the model, its card, the loss curve and, for a generator, a grid of samples."""
    model.save(run.folder / "model")
    points = [(float(record["step"]), float(record["loss"])) for record in outcome.records]
    smooth = plots.smoothed(points, max(1, len(points) // 100))
    plots.write_png(plots.curve({"loss": smooth}, "step", "training loss"), run.folder / "model" / "loss.png")
    if isinstance(model, DiffusionModel):
        rows = _sample_rows(model, dataset, seed)
        write_png(run.folder / "model" / "samples.png", grid(rows, scale=max(1, 48 // rows[0].shape[1])))
    write_text(run.folder / "model" / "README.md", card(model, run.document))


def _sample_rows(model: DiffusionModel, dataset: Dataset, seed: int) -> list[np.ndarray]:
    """Rows of eight samples of a class (or of none); of a text-to-image model, its captions, ten to a row."""
    columns = 8
    if isinstance(model, StableDiffusion):
        style = dataset.aspects["style"]
        rows = [np.flatnonzero(np.array(style.of_class) == i) for i in range(len(style.names))]
        chosen = [label for row in rows for part in (row[:10], row[10::10]) for label in part]
        model.set_prompts([dataset.captions[label][0] for label in chosen])
        columns, labels = 10, torch.arange(len(chosen))
    else:
        count = len(model.class_names) if model.conditional else 4
        labels = torch.arange(count).repeat_interleave(columns)
    images = to_uint8(model.generate(labels, [derive_seed(seed, "grid", i) for i in range(len(labels))]))
    return [images[i : i + columns] for i in range(0, len(images), columns)]


def card(model: Model, document: RunRecord) -> str:
    """The model card: what it is, how it was made, what was measured."""
    info, result = model.info, model.info["training"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    measured = [f"loss over the last tenth of {result['steps']:,} steps: {result['loss'] or 0:.4f} (`loss.png`)"]
    if "test_accuracy" in result:
        measured.append(f"accuracy on the test split: {result['test_accuracy']:.2f} %")
    if "reconstruction_error" in result:
        measured.append(
            f"squared error of the autoencoder's reconstruction, in [-1, 1]: {result['reconstruction_error']:.5f}"
        )
    return model_card(
        f"{model.family} on {info['data']}",
        [
            f"{document['num_weights']:,} weights, images of {info['image_size']} x {info['image_size']} pixels, "
            f"{info['channels']} channel(s){_classes(info)}."
        ],
        {
            "How it was made": [
                f"    {shlex.join(document['command'])}",
                f"with seed {info['recipe']['seed']} on {document['device']}, in {result['seconds']:.0f} s "
                f"({versions}). `erasure.json` holds the whole recipe.",
            ],
            "What was measured": [bullets(measured)],
            "Samples": ["One row of `samples.png` is one class."] if model.family == "ddpm" else [],
            "Licence": ["Apache-2.0"],
        },
    )


def _classes(info: Mapping[str, Any]) -> str:
    names = info.get("class_names", ())
    told = [f"{name} ({', '.join(aspect['names'])})" for name, aspect in info.get("aspects", {}).items()]
    if told:
        return f", {len(names)} classes told apart by {'; '.join(told)}"
    return f", classes: {', '.join(names)}" if names else ""
