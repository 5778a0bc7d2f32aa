"""erasure mask"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import model_flag, parser_of, target_flags, target_given
from erasure.cli.output import Answer
from erasure.core.config import add_flags, build, given_flags


def run(argv: Sequence[str]) -> Answer:
    """Compute a mask."""
    saliency = import_module("erasure.saliency.scores").SaliencyConfig
    parser = parser_of(
        "mask",
        "erasure mask --model digits-ddpm --forget 3 --density 0.5 --out mask.safetensors",
        "erasure mask --model digits-ddpm --forget 3 --score square_sum --out fisher.safetensors --json",
    )
    model_flag(parser)
    parser.add_argument("--out", required=True, help="the safetensors file to write")
    parser.add_argument(
        "--kind",
        choices=("saliency", "random", "inverted"),
        default="saliency",
        help="which weights (default saliency)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and timesteps (default 0)")
    parser.add_argument("--checkpoint-every", type=int, default=50, help="batches between checkpoints (default 50)")
    target_flags(parser)
    add_flags(parser, saliency)
    values = parser.read(argv)
    result = import_module("erasure.erasing.make_mask").make_mask(
        values.model,
        target_given(values),
        values.out,
        build(saliency, "the mask", given_flags(saliency, vars(values))),
        kind=values.kind,
        seed=values.seed,
        checkpoint_every=values.checkpoint_every,
    )
    return result, values.json, _shown_mask


def _shown_mask(result: Any) -> str:
    blocks = [
        f"  {name:28}{values['density']:8.3f} of {values['weights']:,}" for name, values in result["blocks"].items()
    ]
    head = (
        f"{result['mask']}: {result['selected']:,} of {result['weights']:,} weights (density {result['density']:.6f})"
    )
    return "\n".join([head, *blocks])
