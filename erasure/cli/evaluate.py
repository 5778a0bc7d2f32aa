"""`erasure evaluate`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import Parser, evaluation_flags, evaluation_given, parser_of, target_flags, target_given
from erasure.cli.output import Answer, shown_run


def parser(argv: Sequence[str]) -> Parser:
    """The options of `evaluate`."""
    made = parser_of(
        "evaluate",
        "erasure evaluate digits-ddpm --forget 3",
        "erasure evaluate digits-ddpm --metrics ra,fd_classifier --num-images 20 --json",
    )
    made.add_argument("run", help="a run of `erasure erase`, or a model")
    target_flags(made)
    evaluation_flags(made)
    return made


def run(values: argparse.Namespace) -> Answer:
    """Measure a run or a model."""
    evaluate = import_module("erasure.erasing.evaluate").evaluate
    return evaluate(values.run, target_given(values), evaluation_given(values)), shown_run
