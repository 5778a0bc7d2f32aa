"""erasure list"""

from __future__ import annotations

from collections.abc import Sequence

from erasure.cli.options import parser_of
from erasure.cli.output import Answer
from erasure.core import registry
from erasure.prompts.concept import concept_names


def run(argv: Sequence[str]) -> Answer:
    """List the plug-ins of a folder."""
    parser = parser_of("list", "erasure list methods", "erasure list metrics --json")
    kinds = (*registry.LISTED, "concepts")
    parser.add_argument("folder", choices=kinds, help="what to list")
    values = parser.read(argv)
    if values.folder == "concepts":
        listed = [{"name": name, "summary": name} for name in concept_names()]
    else:
        names = registry.names(values.folder)
        listed = [{"name": name, "summary": registry.summary(values.folder, name)} for name in names]
    return {values.folder: listed}, values.json, lambda _: "\n".join(item["summary"] for item in listed)
