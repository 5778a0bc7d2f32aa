"""`erasure verify`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import Parser, parser_of
from erasure.cli.output import Answer


def parser(argv: Sequence[str]) -> Parser:
    """The options of `verify`."""
    made = parser_of(
        "verify",
        "erasure verify cleaned.delta.safetensors --base digits-ddpm",
        "erasure verify cleaned --json",
    )
    made.add_argument("file", help="an exported file or folder, or a mask")
    made.add_argument("--base", metavar="MODEL", help="the original model, to prove that nothing else changed")
    return made


def run(values: argparse.Namespace) -> Answer:
    """Say what a file is, and prove what changed in it."""
    return import_module("erasure.exporting.verify").verify(values.file, values.base), _shown


def _shown(found: Any) -> str:
    lines = [f"{found['file']}: {found['format']}", *_origin(found["provenance"] or {})]
    if "differences" in found:
        lines.append(found["note"])
        lines += [f"differs: {name} ({_amount(moved)})" for name, moved in found["differences"].items()]
        lines += [f"only here: {name}" for name in found["only_in_file"]]
        lines += [f"only in the base: {name}" for name in found["only_in_base"]]
    lines += [f"checked: {sentence}" for sentence in found["checked"]]
    return "\n".join(lines)


def _amount(moved: Any) -> str:
    return moved if isinstance(moved, str) else f"{moved[1]:,} weights"


def _origin(provenance: dict[str, Any]) -> list[str]:
    if "base_hash" not in provenance:
        return [f"{key}: {value}" for key, value in provenance.items()]
    facts = {
        "made by": provenance.get("tool"),
        "base": f"{provenance['base']} ({provenance['base_hash'][:12]})",
        "forgotten": provenance.get("forget"),
        "method": f"{provenance.get('method')}, mask {provenance.get('mask')}, seed {provenance.get('seed')}",
        "number format": provenance.get("dtype"),
        "changed": f"{len(provenance.get('changed', ()))} tensors",
    }
    lines = [f"{name}: {value}" for name, value in facts.items()]
    lines += [f"{name}: {score['value']:.4g} over {score['n']}" for name, score in provenance["metrics"].items()]
    return [*lines, f"note: {provenance['applied_to']}"] if "applied_to" in provenance else lines
