"""`erasure influence`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import Fields, Parser, data_flags, model_flag, parser_of
from erasure.cli.output import Answer
from erasure.core.config import build


def parser(argv: Sequence[str]) -> Parser:
    """The options of `influence`."""
    made = parser_of(
        "influence",
        "erasure influence --model digits-classifier --out suspects",
        "erasure influence --model digits-classifier --known ids:5,17 --out found --json",
    )
    model_flag(made)
    made.add_argument("--out", metavar="DIR", required=True, help="folder for ranking.csv and found.svg")
    made.add_argument(
        "--known",
        metavar="SAMPLES",
        help="samples known to be wrong, to see how many are found: mislabelled, ids:5,17 or ids:FILE "
        "(default: those that `erasure train classifier --mislabel` made wrong)",
    )
    made.add_argument("--seed", type=int, default=0, help="seed of the samples for the curvature (default 0)")
    data_flags(made)
    _settings().add_to(made)
    return made


def run(values: argparse.Namespace) -> Answer:
    """Rank training samples by their effect on the test loss."""
    spec = import_module("erasure.erasing.targets").TargetSpec(
        forget=values.known, data=values.data, data_dir=values.data_dir, image_size=values.image_size
    )
    settings = _settings()
    chosen = build(settings.kind, "influence", settings.given(values))
    influence = import_module("erasure.erasing.influence").influence
    return influence(values.model, spec, values.out, chosen, values.seed), _shown


def _settings() -> Fields:
    return Fields(import_module("erasure.erasing.influence").InfluenceConfig)


def _shown(result: Any) -> str:
    lines = [f"{result['run']}: {result['samples']:,} training samples, the most suspicious first in ranking.csv"]
    lines += [f"  {row['id']:>8}  {row['label']:16} loss {row['loss']:.4g}" for row in result["top"]]
    if result["known"] is not None:
        lines.append(f"of {result['known']:,} samples known to be wrong, inspecting as many finds, and in all (area):")
        lines += [
            f"  {name.replace('_', '-'):16}{100 * found['first']:6.1f} %{found['area']:8.3f}"
            for name, found in result["found"].items()
        ]
    return "\n".join(lines)
