"""erasure benchmark"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import parser_of
from erasure.cli.output import Answer
from erasure.core.errors import OptionError


def run(argv: Sequence[str]) -> Answer:
    """Compare methods over scenarios and seeds."""
    parser = parser_of(
        "benchmark",
        "erasure benchmark digits --out bench",
        "erasure benchmark digits-sd --methods salun,finetune --seeds 2 --out bench --json",
    )
    parser.add_argument("plan", help="a TOML file, or one that ships: digits, digits-ddpm, digits-sd, cifar10-...")
    parser.add_argument("--out", required=True, help="folder for the runs, result.json and report.html; it resumes")
    parser.add_argument("--methods", help="only these rows, by commas")
    parser.add_argument("--scenarios", help="only these scenarios, by commas")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: those of the plan)")
    parser.add_argument("--models", type=int, help="also U-LiRA and KLoM, from so many models of every row (16)")
    parser.add_argument("--steps", type=int, help="train and erase for so many steps only, to see that all of it runs")
    parser.add_argument("--data-dir", help="where the plan's data lies on disk")
    parser.add_argument("--keep-models", action="store_true", help="keep the weights and images of diffusion models")
    parser.add_argument(
        "--search",
        action="store_true",
        help="choose options instead: try the plan's candidates on what it tunes on, and print the best as TOML",
    )
    values = parser.read(argv)
    shared = {
        "methods": _parts(values.methods),
        "scenarios": _parts(values.scenarios),
        "steps": values.steps,
        "data_dir": values.data_dir,
    }
    if values.search:
        if values.seeds is not None or values.models is not None or values.keep_models:
            raise OptionError("--search takes the seeds that the plan tunes on: leave --seeds, --models, --keep-models")
        searching = import_module("erasure.benchmarking.search")
        found = searching.search(values.plan, values.out, **shared)
        return found.to_dict(), values.json, lambda _: searching.as_text(found)
    result = import_module("erasure.benchmarking.run").benchmark(
        values.plan,
        values.out,
        num_seeds=values.seeds,
        num_models=values.models,
        keep_models=values.keep_models,
        **shared,
    )
    return result.to_dict(), values.json, lambda _: import_module("erasure.benchmarking.table").as_text(result)


def _parts(given: str | None) -> list[str]:
    return [part.strip() for part in (given or "").split(",") if part.strip()]
