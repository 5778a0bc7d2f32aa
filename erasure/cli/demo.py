"""erasure demo"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import parser_of
from erasure.cli.output import Answer, table
from erasure.core.errors import OptionError


def run(argv: Sequence[str]) -> Answer:
    """Run the demonstration."""
    parser = parser_of("demo", "erasure demo --out demo", "erasure demo --out demo-full --full --seeds 3")
    parser.add_argument("--out", default="demo", help="folder for the run and its report (default demo)")
    parser.add_argument("--full", action="store_true", help="also the controls and baselines, over several seeds")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds with --full (default 3)")
    parser.add_argument("--scenes", help="which, joined by commas (default: the short demonstration's, or all if full)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    values = parser.read(argv)
    if values.seeds < 1:
        raise OptionError(f"--seeds {values.seeds} must be at least 1")
    scenes = [part.strip() for part in (values.scenes or "").split(",") if part.strip()]
    result = import_module("erasure.erasing.demo").demo(
        values.out, full=values.full, seeds=values.seeds, seed=values.seed, scenes=scenes
    )
    return result, values.json, _shown


def _shown(found: Any) -> str:
    return "\n\n".join(
        f"{scene['title']}\n\n{table(scene['rows'])}\n\nreport: {scene['report']}" for scene in found["scenes"]
    )
