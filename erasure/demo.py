"""The demonstration: erase the digit three from the DDPM that ships, measure it, and show it.

`--full` repeats it over seeds beside its controls (no mask, random mask, inverted mask) and its baselines, because a
claim for saliency without these rows is worth nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure import plots
from erasure.erase import Request, erase
from erasure.errors import DivergedError
from erasure.evaluate import Judging
from erasure.report import COLUMNS, rendered, table, titled
from erasure.run import read_log, write_json, write_text
from erasure.samples import SampleSettings
from erasure.statistics import over_seeds

MODEL, FORGET = "digits-ddpm", "three"
IMAGES_A_CLASS = 100
PROBE_EVERY = 5
FORGOTTEN = 95.0


@dataclass(frozen=True)
class Variant:
    """One row of the full table."""

    name: str
    method: str
    mask: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    once: bool = False


VARIANTS = (
    Variant("SalUn", "salun"),
    Variant("no mask", "salun", "none"),
    Variant("random mask", "salun", "random"),
    Variant("inverted mask", "salun", "inverted"),
    Variant("gradient ascent", "gradient_ascent"),
    Variant("finetune", "finetune"),
    Variant("retrain", "retrain", once=True),
)


def demo(out: str | Path, *, full: bool = False, seeds: int = 3, seed: int = 0) -> dict[str, Any]:
    """Run the demonstration into `out`; returns `ua`, `ra`, `seconds`, `original`, all rows and the report's path.

    Continues where a killed run stopped.
    """
    root = Path(out)
    if full:
        return _full(root, [seed + i for i in range(seeds)])
    result = _one(root / "salun", VARIANTS[0], seed, 0)
    rows = [{"name": "original", "mask": "", **result["original"]}, {"name": "SalUn", **result}]
    return {**result, "rows": rows, "report": str(root / "salun" / "report.html")}


def _one(folder: Path, variant: Variant, seed: int, probe_every: int) -> dict[str, Any]:
    judging = Judging(samples=SampleSettings(num_images=IMAGES_A_CLASS), sample_seed=seed)
    request = Request(
        MODEL,
        FORGET,
        variant.method,
        variant.mask,
        seed=seed,
        options=variant.options,
        judging=judging,
        probe_every=probe_every,
    )
    return erase(request, folder)


def _full(root: Path, seeds: Sequence[int]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    originals: list[dict[str, Any]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for variant in VARIANTS:
        results, forgotten = [], []
        for seed in seeds[:1] if variant.once else seeds:
            folder = root / variant.name.lower().replace(" ", "-") / f"seed-{seed}"
            try:
                results.append(_one(folder, variant, seed, 0 if variant.once else PROBE_EVERY))
            except DivergedError as error:
                rows.append(
                    {"name": variant.name, "mask": f"diverged at seed {seed}: {error}", "metrics": {}, "seconds": None}
                )
                break
            looks = [(r["step"] + 1, r["ua"]) for r in read_log(folder / "log.jsonl") if "ua" in r]
            forgotten.append(next((step for step, ua in looks if ua >= FORGOTTEN), None))
            if seed == seeds[0] and looks:
                curves[variant.name] = looks
        else:
            rows.append(_summary(variant, results, forgotten))
            originals = originals or ([result["original"] for result in results] if not variant.once else [])
    rows.insert(0, _summary(Variant("original", ""), originals, []))
    head = rows[1]
    report = root / "report.html"
    figures = [
        titled(COLUMNS[name], plots.intervals(_points(rows, name), COLUMNS[name]))
        for name in COLUMNS
        if any(name in row["metrics"] for row in rows)
    ]
    figures.append(titled(f"UA along the steps (seed {seeds[0]}, few samples)", plots.curve(curves, "step", "UA %")))
    notes = [
        f"{row['name']}: UA of {FORGOTTEN:.0f} % first seen after "
        + ", ".join("(not reached)" if step is None else f"{step} steps" for step in row["steps_to_forget"])
        for row in rows
        if row.get("steps_to_forget")
    ]
    page = rendered(
        title=f"Forget {FORGET}: methods and controls",
        table=table(rows),
        figures=figures,
        classes=[],
        notes=notes,
        facts={},
    )
    write_text(report, page)
    result = {
        **{key: head[key] for key in ("ua", "ra", "seconds")},
        "original": rows[0],
        "rows": rows,
        "report": str(report),
    }
    write_json(root / "demo.json", result)
    return result


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
        "ra": metrics["ra"]["value"] if "ra" in metrics else None,
        "metrics": metrics,
        "steps_to_forget": list(forgotten),
    }
