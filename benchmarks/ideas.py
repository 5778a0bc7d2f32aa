"""What was tried to spare what is kept, beside SalUn, on the concepts that options are tuned on: masks and losses.

    python -m benchmarks.ideas --out FOLDER
    python -m benchmarks.publish FOLDER --name ideas                          (then `make readme`)

Two masks more: `per layer` takes the salient half of each tensor in place of the half of all, and `discounted` takes
the half with the highest ratio of the forget set's scores to those of as many retain samples, so that what the retain
set needs is left alone. Each is trained by SalUn's loss and by that of salun_distilled.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasure.benchmarking.run import benchmark
from erasure.benchmarking.search import as_toml
from erasure.core.shipped import shipped
from erasure.data import Dataset
from erasure.erasing.targets import TargetSpec, target_of
from erasure.models import load_model
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, saliency_scores

PLAN = "digits-sd"
LOSSES = ("salun", "salun_distilled")
GUIDANCE = {"guidance_scale": 8.5, "saliency_batch_size": 32}


def main(given: list[str] | None = None) -> int:
    """Make the masks and the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ideas", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder for masks, runs and the table")
    parser.add_argument("--steps", type=int, help="optimiser steps, to show that all of it runs")
    parser.add_argument("--plan", default=str(shipped("plans") / f"{PLAN}.toml"), help="whose model and tuning")
    arguments = parser.parse_args(given)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    plan = tomllib.loads(Path(arguments.plan).read_text(encoding="utf-8"))
    (name, scenario), *_ = plan["tuning"].items()
    (seed, *_) = plan["tuned_on"]
    paths = save_masks(plan["model"], TargetSpec(concept=scenario["concept"]), seed, out)
    text = as_plan(plan, name, scenario, seed, paths)
    (out / "plan.toml").write_text(text, encoding="utf-8")
    benchmark(out / "plan.toml", out, steps=arguments.steps)
    return 0


def save_masks(source: str, wanted: TargetSpec, seed: int, out: Path) -> dict[str, Path]:
    """The masks as files, by name; those that are there are kept."""
    paths = {name: out / f"{name}.safetensors" for name in ("per layer", "discounted")}
    if not all(path.is_file() for path in paths.values()):
        model = load_model(source)
        target = target_of(model, wanted, seed)
        for name, mask in masks(model, target.forget_data, target.retain_data, seed).items():
            mask.save(paths[name])
    return paths


def masks(model: Any, forget: Dataset, retain: Dataset, seed: int) -> dict[str, Mask]:
    """The two masks, each of half of the weights."""
    settings = SaliencyConfig(**GUIDANCE)  # type: ignore[arg-type]
    gone, kept = (saliency_scores(model, part.first(len(forget)), settings, seed=seed) for part in (forget, retain))
    about = {"model_hash": model.hash, "seed": seed}
    return {
        "per layer": per_layer(gone, settings.density, {**about, "score": "per layer"}),
        "discounted": Mask.top(discounted(gone, kept), settings.density, {**about, "score": "discounted"}),
    }


def per_layer(scores: Mapping[str, Tensor], density: float, provenance: Mapping[str, Any]) -> Mask:
    """The top share of each tensor."""
    tops = {name: Mask.top({name: score}, density).tensors[name] for name, score in scores.items()}
    return Mask(tops, dict(provenance))


def discounted(gone: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|g_f| / (|g_r| + its mean over all weights), so that a weight that nothing needs is not the first to move."""
    mean = torch.cat([score.flatten() for score in kept.values()]).mean()
    return {name: score / (kept[name] + mean) for name, score in gone.items()}


def as_plan(plan: Mapping[str, Any], name: str, scenario: Mapping[str, Any], seed: int, paths: dict[str, Path]) -> str:
    """A plan of one scenario, whose rows are SalUn's and our loss under each mask."""
    lines = ['family = "diffusion"', f'model = "{plan["model"]}"', f"seeds = [{seed}]", "[evaluation]"]
    lines += [f"{key} = {as_toml(value)}" for key, value in plan["evaluation"].items()]
    lines += [f"[scenarios.{name}]", f"title = {as_toml(scenario['title'])}", f'concept = "{scenario["concept"]}"']
    for loss in LOSSES:
        options = {key: value for key, value in plan["methods"][loss].items() if key not in ("masks", "search")}
        rows = {kind.replace(" ", "-"): {"mask": str(path.resolve())} for kind, path in paths.items()}
        for kind, how in rows.items():
            lines.append(f"[methods.{loss}-{kind}]")
            lines += [f"{key} = {as_toml(value)}" for key, value in {"method": loss, **options, **how}.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
