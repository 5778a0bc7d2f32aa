"""Results as HTML for a notebook: a table of scores, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from erasure.data.images import read_image
from erasure.reports.erase_report import picture, table


def scores_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of metrics with their intervals, a row a model (`name`, `mask`, `metrics`, `seconds`)."""
    built = table(rows)
    lines = [_line("th", built["header"])]
    for row in built["rows"]:
        cells = [f"{cell['value']} {cell['interval']}".strip() for cell in row["cells"]]
        lines.append(_line("td", [row["name"], row["mask"], *cells, row["seconds"]]))
    return str(Markup("<table>{}</table>").format(Markup("").join(lines)))


def image_html(path: Path, title: str) -> str:
    """An image file inside the page."""
    pixels = read_image(path, str(path), 3)
    return str(Markup('<img alt="{}" src="{}">').format(title, picture(pixels)))


def _line(tag: str, cells: Sequence[str]) -> Markup:
    inside = Markup("").join(Markup(f"<{tag}>{escape(cell)}</{tag}>") for cell in cells)  # noqa: S704 (escaped)
    return Markup("<tr>{}</tr>").format(inside)
