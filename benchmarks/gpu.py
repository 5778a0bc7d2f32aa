"""What a GPU is for: invariants, a CIFAR-10 DDPM trained for the minutes there are, tables, Stable Diffusion, audits.

    python -m benchmarks.gpu --minutes 25 --data-dir ../shared/data --out gpu
    python -m benchmarks.gpu --minutes 15 --parts sd --out gpu                 (Stable Diffusion alone: gpu_sd.py)
    python -m benchmarks.gpu --minutes 60 --parts tables --data-dir ../shared/data --out gpu   (gpu_tables.py)
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

from benchmarks import audit, gpu_sd, gpu_tables, sd_networks
from benchmarks.stable_diffusion import job_of
from erasure.core import registry
from erasure.core.distributed import device
from erasure.core.files import read_json, write_json
from erasure.data import Batch, Batches, Dataset, load_dataset
from erasure.data.task import Task
from erasure.erasing.evaluate import evaluate
from erasure.erasing.targets import TargetSpec
from erasure.methods.base import Job
from erasure.models import Model, load_model
from erasure.saliency.mask import Mask
from erasure.training.recipes import ClassifierRecipe, DDPMRecipe, fit, new_model
from erasure.training.train import train

CLASSIFIER_SHARE, JUDGING_SHARE = 0.15, 0.15  # of the minutes; the rest is the DDPM's
SHARES = {"sd": 0.3, "tables": 0.4}  # of the minutes, when the DDPM is trained too
PARTS = ["ddpm", "tables", "sd", "audit"]


def main() -> int:
    """Run every stage; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="time for everything together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which; all of them")
    parser.add_argument("--data-dir", help="where the CIFAR-10 archives lie (for ddpm and tables)")
    parser.add_argument("--out", required=True, help="folder for results and models")
    parser.add_argument("--toy", action="store_true", help="small networks and few images: shows that it runs")
    arguments = parser.parse_args()
    if {"ddpm", "tables"} & {*arguments.parts} and not arguments.data_dir:
        parser.error("--parts ddpm and tables need --data-dir, where the CIFAR-10 archives lie")
    deadline = time.monotonic() + 60 * arguments.minutes
    root = Path(arguments.out)
    root.mkdir(parents=True, exist_ok=True)
    _stage(root, "device", lambda: {"device": str(device()), "name": _name(), "torch": torch.__version__})
    if "sd" in arguments.parts:
        _stage(root, "correct_sd", correct_sd)
    if "ddpm" in arguments.parts:
        share = 1.0 - sum(part for name, part in SHARES.items() if name in arguments.parts)
        _train_and_judge(root, arguments.minutes * share, arguments.data_dir, arguments.toy)
    if "sd" in arguments.parts:
        found = gpu_sd.run(root / "sd.json", gpu_sd.TOY if arguments.toy else gpu_sd.Plan(), deadline, _name())
        print(json.dumps({"sd": found}))
    if "tables" in arguments.parts:
        print(json.dumps({"tables": gpu_tables.run(root, arguments.data_dir, arguments.toy, deadline)}))
    if "audit" in arguments.parts:
        _stage(root, "audit", lambda: dict(audit.full_size(arguments.toy)))
    return 0


def _train_and_judge(root: Path, minutes: float, data_dir: str, toy: bool) -> None:
    ddpm, classifier = _recipes(toy)
    dataset = load_dataset("cifar10", "train", data_dir)
    dataset = dataset.first(200) if toy else dataset
    source: dict[str, Any] = {"data_dir": data_dir, "limit": 200 if toy else None}
    _stage(root, "correct", lambda: correct(ddpm, dataset))
    plan = _stage(root, "plan", lambda: _plan(minutes, ddpm, classifier, dataset))
    _stage(
        root,
        "classifier",
        lambda: train(
            replace(classifier, steps=plan["classifier"]), "cifar10", root / "classifier", **source
        ).to_dict(),
    )
    _stage(root, "ddpm", lambda: train(replace(ddpm, steps=plan["ddpm"]), "cifar10", root / "ddpm", **source).to_dict())
    _stage(root, "judged", lambda: _judged(root, data_dir, 4 if toy else 500))


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
    """The invariants of a small DDPM."""
    small = replace(recipe, channels="16,32", compile=False, weights_dtype="float32")
    task = Task.of_classes("cat", dataset.class_names)
    forget, retain = (dataset.of_classes(classes).first(64) for classes in (task.forget, task.retain))
    batch = Batches(dataset, 8, 0).at(0)
    return invariants(lambda: new_model(small, dataset, 0), Job(task, forget, retain), batch)


def correct_sd() -> dict[str, Any]:
    """The invariants of a small Stable Diffusion of every part."""
    model, latents = sd_networks.whole(16, 8), sd_networks.latents(8, 16)
    job = job_of(latents, sd_networks.random_mask(model.network))
    return invariants(model.clone, job, Batches(latents, 8, 0).at(0), lambda m: m.set_prompts(sd_networks.PROMPTS))


def invariants(
    make: Callable[[], Model], job: Job, batch: Batch, ready: Callable[[Any], Model] = lambda model: model
) -> dict[str, Any]:
    """What a device could break, each of which must be true; `ready` prepares a model that was loaded anew."""
    held = moved = True
    for optimizer, memory in (("adam", "normal"), ("adamw", "normal"), ("sgd", "normal"), ("adam", "low")):
        model = make().to(device())
        before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
        mask = Mask.random(Mask({name: p.cpu() for name, p in before.items()}), 0.5, 0)
        options = {"steps": 3, "batch_size": 8, "optimizer": optimizer, "weight_decay": 0.1, "memory": memory}
        registry.load("methods", "salun")(**options).erase(model, replace(job, mask=mask))
        after = {name: p.detach() for name, p in model.network.named_parameters()}
        outside = {name: ~mask.tensors[name].to(p.device) for name, p in after.items()}
        held &= all(bool((p[outside[name]] == before[name][outside[name]]).all()) for name, p in after.items())
        moved &= any(bool((p != before[name]).any()) for name, p in after.items())
    examples = model.examples(batch, torch.Generator().manual_seed(0))
    with torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch) / "model")
        again = ready(load_model(Path(scratch) / "model"))
        # Copies: what is read from a file begins at any byte of memory, where a CPU may add in another order.
        answers = [m.clone().to(device()).prediction(examples.inputs) for m in (model, again)]
        with torch.autocast(device().type, dtype=torch.bfloat16):
            rough = model.prediction(examples.inputs).float()
    distance = float((rough - answers[0]).norm() / answers[0].norm())
    found = {
        "mask_holds_bit_for_bit": held,
        "weights_in_the_mask_move": moved,
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
    evaluation = {
        "metrics": ("ra", "fd_classifier"),
        "classifier": str(root / "classifier"),
        "num_images": images,
        "sample_batch_size": 1000,
    }
    return evaluate(str(root / "ddpm"), TargetSpec(data="cifar10", data_dir=data_dir), evaluation).to_dict()["metrics"]


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
