"""report.html: one self-contained file that shows what a run did and how well.

It loads nothing from outside, escapes every text, and is readable without JavaScript and on a phone.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from erasure.core import plots
from erasure.core.files import write_text
from erasure.core.run_dir import RunDir, read_log
from erasure.data.images import as_picture, grid, write_png
from erasure.evaluation.outputs import GeneratorOutputs, ModelOutputs
from erasure.saliency.mask import Mask

FRAME = (194, 65, 12)
COLUMNS = {"ua": "UA", "ra": "RA", "forget_share": "forget share", "fd_classifier": "FD (classifier)",
           "paired_distance": "paired distance", "ira": "IRA", "cra": "CRA", "composition": "pairs right",
           "clip_score": "CLIP score", "steps_to_forget": "steps to UA 95 %",
           "fid": "FID", "kid": "KID", "cmmd": "CMMD", "fd_dinov2": "FD (DINOv2)",
           "ta": "TA", "mia": "MIA", "loss_auc": "loss AUC", "avg_gap": "AvgGap"}  # fmt: skip


class Cell(TypedDict):
    """A metric as a table shows it: value, interval and n, each as text."""

    value: str
    interval: str
    n: str


class TableRow(TypedDict):
    """A row of a comparison, with a cell for each metric."""

    name: str
    mask: str
    cells: list[Cell]
    seconds: str


class ComparisonTable(TypedDict):
    """The header and the rows of a comparison of runs."""

    header: list[str]
    rows: list[TableRow]


class Figure(TypedDict):
    """A plot with its title; `svg` is safe to print."""

    title: str
    svg: Markup


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


def rendered(template: str = "report.html", /, **values: Any) -> str:
    """A page of templates/ as text, every value escaped."""
    environment = Environment(
        loader=PackageLoader("erasure.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def table(rows: Sequence[Mapping[str, Any]]) -> ComparisonTable:
    """Header and cells of a comparison; a metric has its value, interval and n, or a dash."""
    measured = {name for row in rows for name in row.get("metrics", {})}
    present = [*(name for name in COLUMNS if name in measured), *sorted(measured - set(COLUMNS))]
    header = ["", "mask", *(COLUMNS.get(name, name) for name in present), "seconds"]
    body: list[TableRow] = []
    for row in rows:
        cells = [cell(row.get("metrics", {}).get(name)) for name in present]
        seconds = row.get("seconds")
        body.append(
            {
                "name": row["name"],
                "mask": row.get("mask", ""),
                "cells": cells,
                "seconds": "" if seconds is None else f"{seconds:.1f}",
            }
        )
    return {"header": header, "rows": body}


def as_text(built: ComparisonTable) -> str:
    """The same table for a terminal."""
    lines = [built["header"]]
    for row in built["rows"]:
        cells = [f"{cell['value']} {cell['interval']}".strip() for cell in row["cells"]]
        lines.append([row["name"], row["mask"], *cells, row["seconds"]])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Align lines of cells in columns, with a rule under the first line: two columns left, the others right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(
        [padded[0].rstrip(), "  ".join("-" * width for width in widths), *(line.rstrip() for line in padded[1:])]
    )


def cell(score: Mapping[str, Any] | None) -> Cell:
    """Value, interval and n of a metric as a table shows them; a dash for a missing one."""
    if score is None:
        return {"value": "-", "interval": "", "n": ""}
    digits = 1 if score["unit"] in ("%", "steps") else 2 if abs(score["value"]) >= 0.1 else 4
    interval = score.get("interval")
    shown = f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
    return {"value": f"{score['value']:.{digits}f}", "interval": shown, "n": f"n = {score['n']}"}


def picture(image: np.ndarray) -> str:
    """An image (h, w, c) as a data URI."""
    buffer = io.BytesIO()
    as_picture(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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


def titled(title: str, figure: Any) -> Figure:
    """A figure for a page; the plotting library has escaped its text."""
    return {"title": title, "svg": Markup(plots.svg(figure))}  # noqa: S704


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
