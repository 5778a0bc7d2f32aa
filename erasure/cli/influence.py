"""erasure influence"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import data_flags, model_flag, parser_of
from erasure.cli.output import Answer
from erasure.core.config import add_flags, build, given_flags


def run(argv: Sequence[str]) -> Answer:
    """Rank training samples by what they do to the test loss."""
    influence = import_module("erasure.erasing.influence")
    parser = parser_of(
        "influence",
        "erasure influence --model digits-classifier --out suspects",
        "erasure influence --model digits-classifier --known ids:5,17 --out found --json",
    )
    model_flag(parser)
    parser.add_argument("--out", required=True, help="the folder to write ranking.csv and found.svg to")
    parser.add_argument(
        "--known",
        metavar="SAMPLES",
        help="samples known to be wrong, to be found: mislabelled, ids:5,17 or ids:FILE "
        "(default: those that `erasure train classifier --mislabel` made wrong)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples for the curvature (default 0)")
    data_flags(parser)
    add_flags(parser, influence.InfluenceConfig)
    values = parser.read(argv)
    wanted = import_module("erasure.erasing.targets").TargetSpec(
        forget=values.known, data=values.data, data_dir=values.data_dir, image_size=values.image_size
    )
    settings = build(influence.InfluenceConfig, "influence", given_flags(influence.InfluenceConfig, vars(values)))
    return influence.influence(values.model, wanted, values.out, settings, values.seed), values.json, _shown


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
