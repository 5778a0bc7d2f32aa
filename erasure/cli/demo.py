"""`erasure demo`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import Parser, parser_of, parts
from erasure.cli.output import Answer, table


def parser(argv: Sequence[str]) -> Parser:
    """The options of `demo`."""
    made = parser_of("demo", "erasure demo --out demo", "erasure demo --out demo-full --full --seeds 3")
    made.add_argument("--out", metavar="DIR", default="demo", help="folder for the run and its report (default demo)")
    made.add_argument("--full", action="store_true", help="also run the controls and baselines, over several seeds")
    made.add_argument("--seeds", type=int, default=3, help="how many seeds with --full (default 3)")
    made.add_argument("--scenes", help="which scenes, by commas (default: the two short ones, or all with --full)")
    made.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    return made


def run(values: argparse.Namespace) -> Answer:
    """Run the demonstration."""
    demo = import_module("erasure.erasing.demo").demo
    scenes = parts(values.scenes)
    return demo(values.out, full=values.full, seeds=values.seeds, seed=values.seed, scenes=scenes), _shown


def _shown(found: Any) -> str:
    return "\n\n".join(
        f"{scene['title']}\n\n{table(scene['rows'])}\n\nreport: {scene['report']}" for scene in found["scenes"]
    )
