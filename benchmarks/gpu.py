"""What a GPU is for: invariants on the device, then a CIFAR-10 DDPM trained for the minutes there are.

    python -m benchmarks.gpu --minutes 25 --data-dir ../shared/data --out gpu
    python -m benchmarks.gpu --toy --minutes 2 --data-dir ../shared/data --out toy     (any machine)

Each stage is skipped when its result is there, and training resumes, so the same command goes on after a stop. The
plan (how many steps fit into the minutes) is made once, from steps that were timed, and kept in plan.json. The model
folder `<out>/ddpm/model` (averaged weights, float16, files of at most 16 MB) is what becomes checkpoints/cifar10-ddpm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from erasure import registry
from erasure.data import Batches, Dataset, load_dataset
from erasure.evaluate import evaluate
from erasure.mask import Mask
from erasure.methods._base import Job
from erasure.models import load_model
from erasure.processes import device
from erasure.recipe import ClassifierRecipe, DDPMRecipe, fit, new_model
from erasure.run import read_json, write_json
from erasure.task import Task
from erasure.train import train

CLASSIFIER_SHARE, JUDGING_SHARE = 0.15, 0.15  # of the minutes; the rest is the DDPM's


def main() -> int:
    """Run every stage; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="time for everything together")
    parser.add_argument("--data-dir", required=True, help="where the CIFAR-10 archives lie")
    parser.add_argument("--out", required=True, help="folder for results and models")
    parser.add_argument("--toy", action="store_true", help="small networks and few images: shows that it runs")
    arguments = parser.parse_args()
    root = Path(arguments.out)
    root.mkdir(parents=True, exist_ok=True)
    ddpm, classifier = _recipes(arguments.toy)
    dataset = load_dataset("cifar10", "train", arguments.data_dir)
    dataset = dataset.first(200) if arguments.toy else dataset
    source: dict[str, Any] = {"data_dir": arguments.data_dir, "limit": 200 if arguments.toy else None}

    _stage(root, "device", lambda: {"device": str(device()), "name": _name(), "torch": torch.__version__})
    _stage(root, "correct", lambda: correct(ddpm, dataset))
    plan = _stage(root, "plan", lambda: _plan(arguments.minutes, ddpm, classifier, dataset))
    _stage(
        root,
        "classifier",
        lambda: train(replace(classifier, steps=plan["classifier"]), "cifar10", root / "classifier", **source),
    )
    _stage(root, "ddpm", lambda: train(replace(ddpm, steps=plan["ddpm"]), "cifar10", root / "ddpm", **source))
    _stage(root, "judged", lambda: _judged(root, arguments.data_dir, 4 if arguments.toy else 500))
    return 0


def _recipes(toy: bool) -> tuple[DDPMRecipe, ClassifierRecipe]:
    ddpm = DDPMRecipe(
        batch_size=16 if toy else 256,
        learning_rate=4e-4,
        warmup_steps=2 if toy else 500,
        ema_decay=0.9995,
        channels="16,32,32" if toy else "128,192,256",
        precision="bf16",
        channels_last=True,
        compile=not toy,
        checkpoint_every=500,
        weights_dtype="float16",
        max_shard_size="60KB" if toy else "16MB",
    )
    arch, size = ("resnet-digits", 16) if toy else ("resnet34", 256)
    return ddpm, ClassifierRecipe(
        arch=arch, batch_size=size, precision="bf16", channels_last=True, checkpoint_every=500
    )


def correct(recipe: DDPMRecipe, dataset: Dataset) -> dict[str, Any]:
    """The invariants that a device could break, on a small network: each must be true."""
    small = replace(recipe, channels="16,32", compile=False, weights_dtype="float32")
    task = Task.of_classes("cat", dataset.class_names)
    forget, retain = (dataset.of_classes(classes).first(64) for classes in (task.forget, task.retain))
    held = True
    for optimizer in ("adam", "adamw", "sgd"):
        model = new_model(small, dataset, 0).to(device())
        before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
        mask = Mask.random(Mask({name: p.cpu() for name, p in before.items()}), 0.5, 0)
        method = registry.load("methods", "salun")(steps=3, batch_size=16, optimizer=optimizer, weight_decay=0.1)
        method.erase(model, Job(task, forget, retain, mask))
        for name, parameter in model.network.named_parameters():
            outside = ~mask.tensors[name].to(parameter.device)
            held &= bool((parameter.detach()[outside] == before[name][outside]).all())
    examples = model.examples(Batches(dataset, 8, 0).at(0), torch.Generator().manual_seed(0))
    with torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch) / "model")
        answers = [m.to(device()).answer(examples.inputs) for m in (model, load_model(Path(scratch) / "model"))]
        with torch.autocast(device().type, dtype=torch.bfloat16):
            rough = model.answer(examples.inputs).float()
    distance = float((rough - answers[0]).norm() / answers[0].norm())
    found = {
        "mask_holds_bit_for_bit": held,
        "saved_and_loaded_predicts_the_same": bool(answers[0].equal(answers[1])),
        "bf16_is_close": distance < 0.05,
    }
    if not all(found.values()):
        raise SystemExit(f"an invariant does not hold on {device()}: {found}")
    return {**found, "bf16_relative_distance": distance}


def _plan(minutes: float, ddpm: DDPMRecipe, classifier: ClassifierRecipe, dataset: Dataset) -> dict[str, int]:
    """How many steps of each training fit into their share of the minutes, from the median of timed steps."""
    shares = {"ddpm": 1 - CLASSIFIER_SHARE - JUDGING_SHARE, "classifier": CLASSIFIER_SHARE}
    plan = {}
    for name, recipe in (("ddpm", ddpm), ("classifier", classifier)):
        outcome = fit(new_model(recipe, dataset, 0).to(device()), replace(recipe, steps=12), dataset, 0)
        seconds = statistics.median(record["seconds"] for record in outcome.records[-8:])
        plan[name] = max(4, int(60 * minutes * shares[name] / seconds))
    return plan


def _judged(root: Path, data_dir: str, images: int) -> dict[str, Any]:
    """Classifier accuracy and Fréchet distance of the model's samples."""
    judging = {
        "metrics": ("ra", "fd_classifier"),
        "classifier": str(root / "classifier"),
        "num_images": images,
        "sample_batch_size": 1000,
    }
    return evaluate(str(root / "ddpm"), judging=judging, data="cifar10", data_dir=data_dir)["metrics"]


def _name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _stage(root: Path, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    path = root / f"{name}.json"
    if not path.is_file():
        began = time.perf_counter()
        write_json(path, run())
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    found: dict[str, Any] = read_json(path)
    print(json.dumps({name: found}))
    return found


if __name__ == "__main__":
    sys.exit(main())
