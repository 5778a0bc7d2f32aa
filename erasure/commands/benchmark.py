"""erasure benchmark"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from erasure.commands._shown import Answer
from erasure.parser import parser_of


def run(argv: Sequence[str]) -> Answer:
    """Compare methods over scenarios and seeds."""
    parser = parser_of(
        "benchmark",
        "erasure benchmark digits --out bench",
        "erasure benchmark digits --methods salun,finetune --seeds 2 --out bench --json",
    )
    parser.add_argument("plan", help="a TOML file, or one that ships: digits, cifar10-small, cifar10-resnet18")
    parser.add_argument("--out", required=True, help="folder for the runs, result.json and report.html; it resumes")
    parser.add_argument("--methods", help="only these rows, by commas")
    parser.add_argument("--scenarios", help="only these scenarios, by commas")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: those of the plan)")
    parser.add_argument("--models", type=int, help="also U-LiRA and KLoM, from so many models of every row (16)")
    parser.add_argument("--steps", type=int, help="train and erase for so many steps only, to see that all of it runs")
    parser.add_argument("--data-dir", help="where the plan's data lies on disk")
    values = parser.read(argv)
    benchmark = import_module("erasure.benchmark")
    result = benchmark.benchmark(
        values.plan,
        values.out,
        methods=_parts(values.methods),
        scenarios=_parts(values.scenarios),
        num_seeds=values.seeds,
        num_models=values.models,
        steps=values.steps,
        data_dir=values.data_dir,
    )
    return result, values.json, import_module("erasure.benchmark_table").as_text


def _parts(given: str | None) -> list[str]:
    return [part.strip() for part in (given or "").split(",") if part.strip()]
