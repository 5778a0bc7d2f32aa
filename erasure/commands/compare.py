"""erasure compare"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from erasure.commands._shown import Answer, table
from erasure.parser import parser_of


def run(argv: Sequence[str]) -> Answer:
    """Put runs side by side."""
    parser = parser_of(
        "compare", "erasure compare run run-ft", "erasure compare run run-ft --html comparison.html --json"
    )
    parser.add_argument("runs", nargs="+", help="finished runs of `erasure erase`")
    parser.add_argument("--html", help="also write a page")
    values = parser.read(argv)
    return (
        import_module("erasure.compare").compare(values.runs, values.html),
        values.json,
        lambda found: table(found["rows"]),
    )
