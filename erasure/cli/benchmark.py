"""`erasure benchmark`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import Parser, parser_of, parts
from erasure.cli.output import Answer
from erasure.core.errors import OptionError


def parser(argv: Sequence[str]) -> Parser:
    """The options of `benchmark`."""
    made = parser_of(
        "benchmark",
        "erasure benchmark digits --out bench",
        "erasure benchmark digits-sd --methods salun,finetune --seeds 2 --out bench --json",
    )
    made.add_argument("plan", help="a TOML file, or one that ships: digits, digits-ddpm, digits-sd, cifar10-...")
    made.add_argument("--out", metavar="DIR", required=True, help="folder for the runs and the report; it resumes")
    made.add_argument("--methods", help="only these rows, by commas")
    made.add_argument("--scenarios", help="only these scenarios, by commas")
    made.add_argument("--seeds", type=int, help="how many seeds (default: those of the plan)")
    made.add_argument("--models", type=int, help="also measure U-LiRA and KLoM, on this many models a row (such as 16)")
    made.add_argument("--steps", type=int, help="train and erase for so many steps only, to try out the plan")
    made.add_argument("--data-dir", help="folder of the plan's data")
    made.add_argument("--keep-models", action="store_true", help="keep the weights and images of diffusion models")
    made.add_argument(
        "--search",
        action="store_true",
        help="choose options instead: try the plan's candidates on what it tunes on, and print the best as TOML",
    )
    return made


def run(values: argparse.Namespace) -> Answer:
    """Compare methods over scenarios and seeds, or search their options."""
    shared = {
        "methods": parts(values.methods),
        "scenarios": parts(values.scenarios),
        "steps": values.steps,
        "data_dir": values.data_dir,
    }
    if values.search:
        if values.seeds is not None or values.models is not None or values.keep_models:
            raise OptionError("--search takes the seeds that the plan tunes on: leave --seeds, --models, --keep-models")
        searching = import_module("erasure.benchmarking.search")
        found = searching.search(values.plan, values.out, **shared)
        return found, lambda _: searching.as_text(found)
    result = import_module("erasure.benchmarking.run").benchmark(
        values.plan,
        values.out,
        num_seeds=values.seeds,
        num_models=values.models,
        keep_models=values.keep_models,
        **shared,
    )
    return result, lambda _: import_module("erasure.benchmarking.table").as_text(result)
