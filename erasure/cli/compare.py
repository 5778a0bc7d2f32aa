"""erasure compare"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import parser_of
from erasure.cli.output import Answer, table


def run(argv: Sequence[str]) -> Answer:
    """Put runs or audits side by side."""
    parser = parser_of(
        "compare", "erasure compare run run-ft", "erasure compare run run-ft --html comparison.html --json"
    )
    parser.add_argument("runs", nargs="+", help="finished runs of `erasure erase`, or finished audits")
    parser.add_argument("--html", help="also write a page")
    values = parser.read(argv)
    return (
        import_module("erasure.auditing.compare").compare(values.runs, values.html),
        values.json,
        _shown,
    )


def _shown(found: Any) -> str:
    if "conditions" in found:
        return str(import_module("erasure.auditing.compare").as_text(found))
    return table(found["rows"])
