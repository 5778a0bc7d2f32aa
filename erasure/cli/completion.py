"""`erasure completion`: a script for a shell, from the parsers of all verbs.

The options of every method and detector are completed, since which of them apply is known only once one is chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib import import_module

from erasure.cli.options import Parser, parser_of
from erasure.cli.output import Answer
from erasure.cli.verbs import VERBS
from erasure.core import registry

SHELLS = ("bash", "zsh", "fish", "powershell")
NAMES = {"method": "methods", "detector": "detectors", "data": "data"}  # options whose values are plug-ins


def parser(argv: Sequence[str]) -> Parser:
    """The options of `completion`."""
    made = parser_of(
        "completion",
        "erasure completion bash",
        "erasure completion zsh --json",
    )
    made.add_argument("shell", choices=SHELLS, help="which shell; bash: source <(erasure completion bash)")
    return made


def run(values: argparse.Namespace) -> Answer:
    """Make the script that completes `erasure` in a shell."""
    shtab = import_module("shtab")
    script = shtab.complete(command_line(), values.shell)
    return {"shell": values.shell, "script": script}, lambda found: str(found["script"])


def command_line() -> argparse.ArgumentParser:
    """Make one parser of the whole command line, with a sub-parser a verb."""
    root = argparse.ArgumentParser(prog="erasure")
    root.add_argument("--version", action="store_true", help="print the version")
    verbs = root.add_subparsers()
    for verb, about in VERBS.items():
        module = import_module(f"erasure.cli.{verb}")
        kinds = getattr(module, "SUBVERBS", ())
        if not kinds:
            _add(verbs, verb, about, [module.parser(words) for words in _words(verb)])
            continue
        nested = verbs.add_parser(verb, help=about).add_subparsers()
        for kind in kinds:
            _add(nested, kind, about, [module.parser([kind, *words]) for words in _words(f"{verb} {kind}")])
    return root


def _words(verb: str) -> Iterator[list[str]]:
    """The command lines whose parsers together have all options of a verb."""
    if verb in ("erase", "exact fit"):
        kind = "methods" if verb == "erase" else "exact"
        yield from (["--method", name] for name in registry.names(kind))
    elif verb == "audit":
        yield ["--detector", ",".join(registry.names("detectors"))]
    else:
        yield []


def _add(verbs: argparse._SubParsersAction, name: str, about: str, parsers: Sequence[Parser]) -> None:
    """Add a sub-parser that has every option of `parsers` once."""
    made = verbs.add_parser(name, help=about)
    known: set[str] = set()
    for parser in parsers:
        for action in parser._actions:
            names = {*action.option_strings} or {action.dest}
            if action.dest != "help" and known.isdisjoint(names):
                _complete(action)
                made._add_action(action)
                known |= names


def _complete(action: argparse.Action) -> None:
    """Say what completes the value of an option: names of plug-ins, its own choices, or files."""
    if action.nargs == 0 or action.choices or action.type in (int, float):
        return
    kind = NAMES.get(action.dest)
    if kind:
        action.choices = registry.names(kind)
    else:
        action.complete = import_module("shtab").FILE  # type: ignore[attr-defined]
