"""erasure generate"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import model_flag, parser_of
from erasure.cli.output import Answer
from erasure.core.config import add_flags, build, given_flags


def run(argv: Sequence[str]) -> Answer:
    """Draw images."""
    settings = import_module("erasure.sampling.draw").SamplingOptions
    parser = parser_of(
        "generate",
        "erasure generate --model digits-ddpm --classes 0,1,2 --num-images 16 --out samples",
        "erasure generate --model digits-sd --prompt 'a three in neon style' --num-images 4 --out threes",
    )
    model_flag(parser)
    parser.add_argument("--classes", help="classes by index or name, joined by commas (default: all)")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt to draw; may be given several times")
    parser.add_argument("--prompts", metavar="FILE", help=".txt, a prompt a line, or .csv (prompt, seed, guidance)")
    parser.add_argument("--compare", metavar="BASE", help="another model that draws from the same seeds, side by side")
    parser.add_argument("--out", required=True, help="folder for the images and grid.png")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    add_flags(parser, settings)
    values = parser.read(argv)
    chosen = build(settings, "sampling", given_flags(settings, vars(values)))
    module = import_module("erasure.sampling.generate")
    if values.prompt or values.prompts or values.compare:
        if values.classes:
            parser.error("--classes is for class-conditional models, --prompt for text-to-image models: give one")
        rows = import_module("erasure.prompts.prompt_table").prompt_rows(values.prompt, values.prompts)
        result = module.generate_prompts(values.model, rows, values.out, chosen, values.seed, values.compare)
    else:
        result = module.generate(values.model, values.classes, values.out, chosen, values.seed)
    return result.to_dict(), values.json, lambda found: f"{found['images']} images, {found['grid']}"
