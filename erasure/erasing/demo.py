"""The demonstration: erase a digit from the models that ship, measure it, and show it.

`--full` repeats every scene over seeds beside its controls (no mask, random mask, ...) and baselines, because a claim
for saliency without these rows is worth nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure.core import plots
from erasure.core.errors import DivergedError, OptionError, suggestion
from erasure.core.files import write_json, write_text
from erasure.core.run_dir import read_log
from erasure.core.statistics import over_seeds
from erasure.erasing.erase import EraseRequest, erase
from erasure.erasing.targets import TargetSpec
from erasure.evaluation.settings import EvaluationConfig
from erasure.reports.page import COLUMNS, rendered, table, titled
from erasure.sampling.draw import SamplingOptions


@dataclass(frozen=True)
class Variant:
    """One row of a scene's full table."""

    name: str
    method: str
    mask: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    once: bool = False


@dataclass(frozen=True)
class Scene:
    """One erasure and its controls; `num_images` of each class or prompt are generated to measure it."""

    title: str
    model: str
    variants: tuple[Variant, ...]
    num_images: int
    forget: str | None = None
    concept: str | None = None
    num_inference_steps: int | None = None
    probe_every: int = 5
    training_images: Mapping[str, Any] = field(default_factory=dict)
    shown: bool = False  # part of the short demonstration

    def folder_of(self, variant: Variant) -> str:
        """The variant's folder inside the scene's."""
        return variant.name.lower().replace(" ", "-")


CLASS_VARIANTS = (
    Variant("SalUn", "salun"),
    Variant("no mask", "salun", "none"),
    Variant("random mask", "salun", "random"),
    Variant("inverted mask", "salun", "inverted"),
    Variant("gradient ascent", "gradient_ascent"),
    Variant("finetune", "finetune"),
    Variant("retrain", "retrain", once=True),
)
PROMPT_VARIANTS = (
    Variant("SalUn", "salun"),
    Variant("no mask", "salun", "none"),
    Variant("random mask", "salun", "random"),
    Variant("attn2 only", "salun", "none", {"weights": "attn2"}),
)


def _of_prompts(title: str, concept: str, shown: bool = False) -> Scene:
    """A concept erased from digits-sd, which draws as well in 15 steps as in 30."""
    return Scene(
        title,
        "digits-sd",
        PROMPT_VARIANTS,
        num_images=4,
        concept=concept,
        num_inference_steps=15,
        probe_every=10,
        shown=shown,
    )


SCENES = {
    "ddpm-three": Scene(
        "the digit three, class-conditional DDPM", "digits-ddpm", CLASS_VARIANTS, 100, forget="three", shown=True
    ),
    "sd-three": _of_prompts("the digit three, Stable Diffusion", "digits/three", shown=True),
    "sd-neon": _of_prompts("the neon style, Stable Diffusion", "digits/neon"),
    "sd-both": _of_prompts("three and neon in one run, Stable Diffusion", "digits/three,digits/neon"),
}


FORGOTTEN = 95.0


def demo(
    out: str | Path, *, full: bool = False, seeds: int = 3, seed: int = 0, scenes: Sequence[str] = ()
) -> dict[str, Any]:
    """Run the demonstration into `out`; `scenes` by name, by default those of the short one, or all with `full`.

    Returns `ua`, `ra`, `seconds`, `original` of the first, and of each scene its rows and the report's path. Continues
    where a killed run stopped.
    """
    if seeds < 1:
        raise OptionError(f"--seeds {seeds} must be at least 1")
    for name in scenes:
        if name not in SCENES:
            raise OptionError(f"unknown scene {name!r}{suggestion(name, SCENES)}")
    chosen = scenes or [name for name, scene in SCENES.items() if full or scene.shown]
    found = []
    for name in chosen:
        root, scene = Path(out) / name, SCENES[name]
        played = _full(root, scene, [seed + i for i in range(seeds)]) if full else _short(root, scene, seed)
        found.append({"scene": name, "title": scene.title, **played})
    head = {key: found[0][key] for key in ("ua", "ra", "seconds", "original", "metrics", "report")}
    result = {**head, "scenes": found}
    write_json(Path(out) / "demo.json", result)
    return result


def _short(root: Path, scene: Scene, seed: int) -> dict[str, Any]:
    variant = scene.variants[0]
    folder = root / scene.folder_of(variant)
    result = _one(folder, scene, variant, seed, 0)
    rows = [{"name": "original", "mask": "", **result["original"]}, {"name": variant.name, **result}]
    return {**result, "rows": rows, "report": str(folder / "report.html")}


def _one(folder: Path, scene: Scene, variant: Variant, seed: int, probe_every: int) -> dict[str, Any]:
    samples = SamplingOptions(num_images=scene.num_images, num_inference_steps=scene.num_inference_steps)
    request = EraseRequest(
        scene.model,
        TargetSpec(forget=scene.forget, concept=scene.concept, training_images=scene.training_images),
        variant.method,
        variant.mask,
        seed=seed,
        options=variant.options,
        evaluation=EvaluationConfig(samples=samples, sample_seed=seed),
        probe_every=probe_every,
    )
    return erase(request, folder).to_dict()


def _full(root: Path, scene: Scene, seeds: Sequence[int]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    originals: list[dict[str, Any]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for variant in scene.variants:
        try:
            results, forgotten = _repeated(root, scene, variant, seeds, curves)
        except DivergedError as error:
            rows.append({"name": variant.name, "mask": f"diverged: {error}", "metrics": {}, "seconds": None})
            continue
        rows.append(_summary(variant, results, forgotten))
        if not originals and not variant.once:
            originals = [result["original"] for result in results]
    rows.insert(0, _summary(Variant("original", ""), originals, []))
    report = _write_page(root / "report.html", scene, rows, curves, seeds[0])
    head = {key: rows[1][key] for key in ("ua", "ra", "seconds", "metrics")}
    return {**head, "original": rows[0], "rows": rows, "report": str(report)}


def _repeated(
    root: Path, scene: Scene, variant: Variant, seeds: Sequence[int], curves: dict[str, list[tuple[float, float]]]
) -> tuple[list[dict[str, Any]], list[int | None]]:
    """Results of a variant over seeds, and the steps after which each had forgotten; the first seed's curve is kept."""
    results: list[dict[str, Any]] = []
    forgotten: list[int | None] = []
    for seed in seeds[:1] if variant.once else seeds:
        folder = root / scene.folder_of(variant) / f"seed-{seed}"
        results.append(_one(folder, scene, variant, seed, 0 if variant.once else scene.probe_every))
        probes = [(r["step"] + 1, r["ua"]) for r in read_log(folder / "log.jsonl") if "ua" in r]
        forgotten.append(next((step for step, ua in probes if ua >= FORGOTTEN), None))
        if seed == seeds[0] and probes:
            curves[variant.name] = probes
    return results, forgotten


def _write_page(
    report: Path,
    scene: Scene,
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[str, list[tuple[float, float]]],
    seed: int,
) -> Path:
    figures = [
        titled(COLUMNS[name], plots.intervals(_points(rows, name), COLUMNS[name]))
        for name in COLUMNS
        if any(name in row["metrics"] for row in rows)
    ]
    figures.append(titled(f"UA along the steps (seed {seed}, few samples)", plots.curve(dict(curves), "step", "UA %")))
    notes = [
        f"{row['name']}: UA of {FORGOTTEN:.0f} % first seen after "
        + ", ".join("(not reached)" if step is None else f"{step} steps" for step in row["steps_to_forget"])
        for row in rows
        if row.get("steps_to_forget")
    ]
    title = f"Forget {scene.title}: methods and controls"
    write_text(report, rendered(title=title, table=table(rows), figures=figures, classes=[], notes=notes, facts={}))
    return report


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, tuple[float, Sequence[float] | None]]:
    return {
        row["name"]: (row["metrics"][name]["value"], row["metrics"][name]["interval"])
        for row in rows
        if name in row["metrics"]
    }


def _summary(variant: Variant, results: Sequence[Mapping[str, Any]], forgotten: Sequence[int | None]) -> dict[str, Any]:
    """Means over seeds with Student-t intervals; a single run keeps its own intervals."""
    if len(results) == 1:
        return {**results[0], "name": variant.name, "mask": results[0].get("mask", ""), "seeds": 1}
    metrics = {}
    for name in results[0]["metrics"]:
        value, interval = over_seeds([result["metrics"][name]["value"] for result in results])
        ceiling = 100.0 if results[0]["metrics"][name]["unit"] == "%" else interval[1]
        interval = max(0.0, interval[0]), min(ceiling, interval[1])  # no metric here can be negative
        metrics[name] = {
            **results[0]["metrics"][name],
            "value": value,
            "interval": list(interval) if len(results) > 1 else None,
            "n": len(results),
            "details": {},
        }
    reached = [step for step in forgotten if step is not None]
    if reached and len(reached) == len(results):
        value, interval = over_seeds([float(step) for step in reached])
        steps = {
            "value": value,
            "interval": [max(0.0, interval[0]), interval[1]],
            "unit": "steps",
            "n": len(results),
            "details": {},
        }
        metrics["steps_to_forget"] = steps
    return {
        "name": variant.name,
        "mask": results[0].get("mask", ""),
        "seeds": len(results),
        "seconds": sum(result["seconds"] for result in results) / len(results),
        "ua": metrics["ua"]["value"] if "ua" in metrics else None,
        "ra": next((metrics[name]["value"] for name in ("ra", "ira") if name in metrics), None),
        "metrics": metrics,
        "steps_to_forget": list(forgotten),
    }
