"""How results are shown on a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TextIO

COLOURS = {"red": 31, "green": 32, "yellow": 33}
Answer = tuple[Any, Callable[[Any], str]]  # a result, and what makes text of what `--json` prints of it


def paint(text: str, colour: str, stream: TextIO | None) -> str:
    """`text` in a colour of COLOURS; as it is for another one, under NO_COLOR, and unless `stream` is a terminal."""
    refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if colour not in COLOURS or refused or stream is None or not stream.isatty():
        return text
    return f"[{COLOURS[colour]}m{text}[0m"


def table(rows: Sequence[Any]) -> str:
    """Rows of a comparison as aligned text."""
    report = import_module("erasure.reports.page")
    return str(report.as_text(report.table(rows)))


def shown_run(result: Any) -> str:
    """A run beside the original, what was not measured, and where the model and the report are."""
    name = result.get("method") or result.get("model")
    rows = [{"name": name, **result}]
    if result.get("original") and "method" in result:
        rows.insert(0, {"name": "original", **result["original"]})
    lines = [table(rows)]
    lines += [f"{name} not measured: {why}" for name, why in result.get("not_measured", {}).items()]
    if "run" in result:
        lines += ["", f"model: {result['run']}/model", f"report: {result['run']}/report.html"]
    return "\n".join(lines)


def lines_of(result: Any) -> str:
    """One line an entry."""
    return "\n".join(f"{key}: {value}" for key, value in result.items())
