"""erasure evaluate"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import evaluation_flags, evaluation_given, parser_of, target_flags, target_given
from erasure.cli.output import Answer, shown_run


def run(argv: Sequence[str]) -> Answer:
    """Measure a run or a model."""
    parser = parser_of(
        "evaluate",
        "erasure evaluate digits-ddpm --forget 3",
        "erasure evaluate digits-ddpm --metrics ra,fd_classifier --num-images 20 --json",
    )
    parser.add_argument("run", help="a run of `erasure erase`, or a model")
    target_flags(parser)
    evaluation_flags(parser)
    values = parser.read(argv)
    module = import_module("erasure.erasing.evaluate")
    return module.evaluate(values.run, target_given(values), evaluation_given(values)), values.json, shown_run
