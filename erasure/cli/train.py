"""erasure train"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import data_flags, parser_of
from erasure.cli.output import Answer, lines_of
from erasure.core.config import add_flags, build, given_flags
from erasure.core.errors import OptionError


def run(argv: Sequence[str]) -> Answer:
    """Train a model."""
    kinds = ("ddpm", "sd", "classifier")
    examples = (
        "erasure train ddpm --data digits --out my-ddpm --steps 2500 --seed 1",
        "erasure train classifier --data digits --arch resnet-digits --out my-classifier --steps 1500",
    )
    if not argv or argv[0] not in kinds:
        parser = parser_of("train", *examples)
        parser.add_argument("kind", choices=kinds, help="what to train; its own options: erasure train ddpm --help")
        parser.read(argv)
        raise OptionError(f"expected `erasure train {'|'.join(kinds)}`, the kind before its options")
    module, name = {
        "ddpm": ("recipes", "DDPMRecipe"),
        "sd": ("recipe_stable_diffusion", "SDRecipe"),
        "classifier": ("recipes", "ClassifierRecipe"),
    }[argv[0]]
    recipe = getattr(import_module(f"erasure.training.{module}"), name)
    parser = parser_of(f"train {argv[0]}", *examples)
    data_flags(parser, required=True)
    parser.add_argument("--out", required=True, help="folder for the model, its card and its log")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default 0)")
    parser.add_argument("--limit", type=int, help="train on so many images, even over the classes")
    parser.add_argument("--resume", action="store_true", help="continue; an error when there is nothing to continue")
    add_flags(parser, recipe)
    values = parser.read(argv[1:])
    result = import_module("erasure.training.train").train(
        build(recipe, f"train {argv[0]}", given_flags(recipe, vars(values))),
        values.data,
        values.out,
        data_dir=values.data_dir,
        image_size=values.image_size,
        limit=values.limit,
        seed=values.seed,
        resume=values.resume,
    )
    return {"out": values.out, "model": f"{values.out}/model", **result}, values.json, lines_of
