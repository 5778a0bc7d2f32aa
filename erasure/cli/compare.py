"""erasure compare"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

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
    comparing = import_module("erasure.auditing.compare")
    result = comparing.compare(values.runs, values.html)
    if isinstance(result, comparing.AuditComparison):
        return result.to_dict(), values.json, lambda _: comparing.as_text(result)
    return result.to_dict(), values.json, lambda found: table(found["rows"])
