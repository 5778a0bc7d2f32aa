"""`erasure generate`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import Fields, Parser, model_flag, parser_of
from erasure.cli.output import Answer
from erasure.cli.verbs import UsageError
from erasure.core.config import build


def parser(argv: Sequence[str]) -> Parser:
    """The options of `generate`."""
    made = parser_of(
        "generate",
        "erasure generate --model digits-ddpm --classes 0,1,2 --num-images 16 --out samples",
        "erasure generate --model digits-sd --prompt 'a three in neon style' --num-images 4 --out threes",
    )
    model_flag(made)
    made.add_argument("--classes", help="classes by index or name, by commas (default: all)")
    made.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    made.add_argument("--prompts", metavar="FILE", help=".txt with a prompt a line, or .csv (prompt, seed, guidance)")
    made.add_argument("--compare", metavar="BASE", help="another model, for images from the same seeds side by side")
    made.add_argument("--out", metavar="DIR", required=True, help="folder for the images and grid.png")
    made.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    _sampling().add_to(made)
    return made


def run(values: argparse.Namespace) -> Answer:
    """Generate images."""
    sampling = _sampling()
    chosen = build(sampling.kind, "sampling", sampling.given(values))
    module = import_module("erasure.sampling.generate")
    if values.prompt or values.prompts or values.compare:
        if values.classes:
            raise UsageError("--classes is for class-conditional models, --prompt for text-to-image models: give one")
        rows = import_module("erasure.prompts.prompt_table").prompt_rows(values.prompt, values.prompts)
        result = module.generate_prompts(values.model, rows, values.out, chosen, values.seed, values.compare)
    else:
        result = module.generate(values.model, values.classes, values.out, chosen, values.seed)
    return result, lambda found: f"{found['images']} images, {found['grid']}"


def _sampling() -> Fields:
    return Fields(import_module("erasure.sampling.draw").SamplingOptions)
