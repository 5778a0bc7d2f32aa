"""`erasure list`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from erasure.cli.options import Parser, parser_of
from erasure.cli.output import Answer
from erasure.core import registry
from erasure.prompts.concept import concept_names


def parser(argv: Sequence[str]) -> Parser:
    """The options of `list`."""
    made = parser_of("list", "erasure list methods", "erasure list metrics --json")
    made.add_argument("folder", choices=(*registry.LISTED, "concepts"), help="what to list")
    return made


def run(values: argparse.Namespace) -> Answer:
    """List the plug-ins of a kind, or the concepts."""
    if values.folder == "concepts":
        listed = [{"name": name, "summary": name} for name in concept_names()]
    else:
        names = registry.names(values.folder)
        listed = [{"name": name, "summary": registry.summary(values.folder, name)} for name in names]
    return {values.folder: listed}, lambda _: "\n".join(item["summary"] for item in listed)
