"""Pages and tables that reports share: templates, tables of metrics for HTML and for terminals, pictures, plots."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from erasure.core import plots
from erasure.data.images import as_picture

COLUMNS = {"ua": "UA", "ra": "RA", "forget_share": "forget share", "fd_classifier": "FD (classifier)",
           "paired_distance": "paired distance", "ira": "IRA", "cra": "CRA", "composition": "pairs right",
           "clip_score": "CLIP score", "steps_to_forget": "steps to UA 95 %",
           "fid": "FID", "kid": "KID", "cmmd": "CMMD", "fd_dinov2": "FD (DINOv2)",
           "ta": "TA", "mia": "MIA", "loss_auc": "loss AUC", "avg_gap": "AvgGap"}  # fmt: skip


class ShownScore(TypedDict):
    """A metric as a table shows it: value, interval and n, each as text."""

    value: str
    interval: str
    n: str


class ShownRow(TypedDict):
    """A row of a comparison, with a cell for each metric."""

    name: str
    mask: str
    cells: list[ShownScore]
    seconds: str


class ComparisonTable(TypedDict):
    """The header and the rows of a comparison of runs."""

    header: list[str]
    rows: list[ShownRow]


class Figure(TypedDict):
    """A plot with its title; `svg` is safe to print."""

    title: str
    svg: Markup


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
    body: list[ShownRow] = []
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


def cell(score: Mapping[str, Any] | None) -> ShownScore:
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


def titled(title: str, figure: Any) -> Figure:
    """A figure for a page; the plotting library has escaped its text."""
    return {"title": title, "svg": Markup(plots.svg(figure))}  # noqa: S704
