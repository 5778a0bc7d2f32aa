"""report.html: one self-contained file that shows what a run did and how well.

It loads nothing from outside, escapes every text, and is readable without JavaScript and on a phone.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from erasure.core import plots
from erasure.core.files import write_text
from erasure.core.run_dir import RunDir, read_log
from erasure.data.images import grid, write_png
from erasure.evaluation.outputs import GeneratorOutputs, ModelOutputs
from erasure.reports.page import COLUMNS, Figure, picture, rendered, table, titled
from erasure.saliency.mask import Mask

FRAME = (194, 65, 12)


class ClassRow(TypedDict):
    """Images of a class or prompt from the same seeds before and after, as data URIs."""

    name: str
    forgotten: bool
    before: str
    after: str


def write_report(
    run: RunDir, result: Mapping[str, Any], before: ModelOutputs | None, after: ModelOutputs | None
) -> Path:
    """Write report.html into the run's folder: table, samples before and after, curves, mask by block, provenance."""
    rows = [{"name": result["method"], "mask": result["mask"], **result}]
    if "original" in result:
        rows.insert(0, {"name": "original", "mask": "", **result["original"]})
    path = run.folder / "report.html"
    if isinstance(before, GeneratorOutputs) and isinstance(after, GeneratorOutputs):
        write_png(run.folder / "before-after.png", before_and_after(before, after))
    write_text(
        path,
        rendered(
            title=f"{result['method']}: forget {result['forget']}",
            table=table(rows),
            classes=_class_rows(before, after),
            figures=_figures(run),
            notes=[
                f"{COLUMNS.get(name, name)} was not measured: {why}"
                for name, why in result.get("not_measured", {}).items()
            ],
            facts=_facts(run, result),
        ),
    )
    return path


def before_and_after(before: GeneratorOutputs, after: GeneratorOutputs) -> np.ndarray:
    """One colour picture: the original's images left, the cleaned model's right, forgotten rows framed."""
    halves = []
    for outputs in (before, after):
        rows = outputs.picture()
        side, gap = rows[0].images.shape[1], 2
        scale = max(1, 40 // side)
        half = grid([row.images for row in rows], scale, gap)
        half = half if half.shape[-1] == 3 else half.repeat(3, axis=-1)
        height = side * scale + gap
        for i in (i for i, row in enumerate(rows) if row.forgotten):
            top, bottom = i * height, (i + 1) * height + gap
            half[top : top + gap] = half[bottom - gap : bottom] = half[top:bottom, :gap] = FRAME
            half[top:bottom, -gap:] = FRAME
        halves.append(half)
    return np.concatenate([halves[0], np.full((len(halves[0]), 24, 3), 255, np.uint8), halves[1]], axis=1)


def _class_rows(before: ModelOutputs | None, after: ModelOutputs | None) -> list[ClassRow]:
    """For each class, images from the same seeds before and after; forgotten classes first."""
    if not isinstance(before, GeneratorOutputs) or not isinstance(after, GeneratorOutputs):
        return []
    scale = max(1, 40 // after.samples.images.shape[1])
    return [
        {
            "name": new.name,
            "forgotten": new.forgotten,
            "before": picture(grid([old.images], scale)),
            "after": picture(grid([new.images], scale)),
        }
        for old, new in zip(before.picture(), after.picture(), strict=True)
    ]


def _figures(run: RunDir) -> list[Figure]:
    records = read_log(run.folder / "log.jsonl")
    figures = []
    series = {
        name: plots.smoothed([(r["step"] + 1, r[name]) for r in records if name in r], max(1, len(records) // 100))
        for name in ("loss", "forget", "retain")
    }
    series = {name: points for name, points in series.items() if points}
    if series:
        figures.append(titled("Loss", plots.curve(series, "step", "loss")))
    probes = {name.upper(): [(r["step"] + 1, r[name]) for r in records if name in r] for name in ("ua", "ra")}
    if any(probes.values()):
        figures.append(titled("UA and RA along the steps (few samples each)", plots.curve(probes, "step", "%")))
    if (run.folder / "mask.safetensors").is_file():
        mask = Mask.load(run.folder / "mask.safetensors")
        shares = {block: values["density"] for block, values in mask.by_block().items()}
        title = f"Share of weights that may move, by block ({mask.selected:,} of {mask.total:,})"
        figures.append(titled(title, plots.bars(shares, "density", reference=mask.density)))
    return figures


def _facts(run: RunDir, result: Mapping[str, Any]) -> dict[str, str]:
    document, settings = run.document, run.settings
    steps = settings["options"]
    return {
        "command": shlex.join(document["command"]),
        "original": settings["model"],
        "hash of the original": settings["model_hash"],
        "hash of the cleaned model": str(result.get("hash")),
        "weights changed": f"{result['changed_weights']:,} of {result['total_weights']:,}",
        "relative change": f"{result['relative_change']:.4f}",
        "seconds of the mask": f"{result['mask_seconds']:.1f}",
        "seconds by phase": ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.get("phases", {}).items()),
        "options": ", ".join(f"{key} {value}" for key, value in steps.items()),
        "saliency": ", ".join(f"{key} {value}" for key, value in settings["saliency"].items()),
        "seeds": f"run {settings['seed']}, samples {settings['evaluation']['sample_seed']}",
        "device": document.get("device", ""),
        "versions": ", ".join(f"{key} {value}" for key, value in document["versions"].items()),
    }
