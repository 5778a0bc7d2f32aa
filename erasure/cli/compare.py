"""`erasure compare`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import Parser, parser_of
from erasure.cli.output import Answer, table


def parser(argv: Sequence[str]) -> Parser:
    """The options of `compare`."""
    made = parser_of(
        "compare", "erasure compare run run-ft", "erasure compare run run-ft --html comparison.html --json"
    )
    made.add_argument("runs", nargs="+", help="finished runs of `erasure erase`, or finished audits")
    made.add_argument("--html", metavar="FILE", help="also write a page")
    return made


def run(values: argparse.Namespace) -> Answer:
    """Put runs or audits side by side."""
    comparing = import_module("erasure.auditing.compare")
    result = comparing.compare(values.runs, values.html)
    if isinstance(result, comparing.AuditComparison):
        return result, lambda _: comparing.as_text(result)
    return result, lambda found: table(found["rows"])
