"""`erasure mask`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import Fields, Parser, model_flag, parser_of, target_flags, target_given
from erasure.cli.output import Answer
from erasure.core.config import build


def parser(argv: Sequence[str]) -> Parser:
    """The options of `mask`."""
    made = parser_of(
        "mask",
        "erasure mask --model digits-ddpm --forget 3 --density 0.5 --out mask.safetensors",
        "erasure mask --model digits-ddpm --forget 3 --score square_sum --out fisher.safetensors --json",
    )
    model_flag(made)
    made.add_argument("--out", metavar="FILE", required=True, help="the safetensors file to write")
    made.add_argument(
        "--kind",
        choices=("saliency", "random", "inverted"),
        default="saliency",
        help="which weights (default saliency)",
    )
    made.add_argument("--seed", type=int, default=0, help="seed of noise and timesteps (default 0)")
    made.add_argument("--checkpoint-every", type=int, default=50, help="batches between checkpoints (default 50)")
    target_flags(made)
    _saliency().add_to(made)
    return made


def run(values: argparse.Namespace) -> Answer:
    """Compute a mask."""
    saliency = _saliency()
    result = import_module("erasure.erasing.make_mask").make_mask(
        values.model,
        target_given(values),
        values.out,
        build(saliency.kind, "the mask", saliency.given(values)),
        kind=values.kind,
        seed=values.seed,
        checkpoint_every=values.checkpoint_every,
    )
    return result, _shown


def _saliency() -> Fields:
    return Fields(import_module("erasure.saliency.scores").SaliencyConfig)


def _shown(result: Any) -> str:
    blocks = [
        f"  {name:28}{values['density']:8.3f} of {values['weights']:,}" for name, values in result["blocks"].items()
    ]
    head = (
        f"{result['mask']}: {result['selected']:,} of {result['weights']:,} weights (density {result['density']:.6f})"
    )
    return "\n".join([head, *blocks])
