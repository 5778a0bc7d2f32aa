"""`erasure train`: its options depend on the kind of model, which is the first word."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from erasure.cli.options import Fields, Parser, data_flags, parser_of
from erasure.cli.output import Answer, lines_of
from erasure.core.config import build
from erasure.core.errors import OptionError

RECIPES = {
    "ddpm": "erasure.training.recipes:DDPMRecipe",
    "sd": "erasure.training.recipe_stable_diffusion:SDRecipe",
    "classifier": "erasure.training.recipes:ClassifierRecipe",
}
SUBVERBS = tuple(RECIPES)
EXAMPLES = (
    "erasure train ddpm --data digits --out my-ddpm --steps 2500 --seed 1",
    "erasure train classifier --data digits --arch resnet-digits --out my-classifier --steps 1500",
)


def parser(argv: Sequence[str]) -> Parser:
    """The options of `train` for the kind of model that `argv` begins with."""
    if not argv or argv[0] not in RECIPES:
        made = parser_of("train", *EXAMPLES)
        made.add_argument("kind", choices=RECIPES, help="what to train; its options: erasure train ddpm --help")
        return made
    made = parser_of(f"train {argv[0]}", *EXAMPLES)
    made.skip = 1
    made.set_defaults(kind=argv[0])
    data_flags(made, required=True)
    made.add_argument("--out", metavar="DIR", required=True, help="folder for the model, its card and its log")
    made.add_argument("--seed", type=int, default=0, help="seed of everything that is random (default 0)")
    made.add_argument("--limit", type=int, help="train on so many images only, as many of each class")
    made.add_argument("--resume", action="store_true", help="continue; an error when there is nothing to continue")
    _recipe(argv[0]).add_to(made)
    return made


def run(values: argparse.Namespace) -> Answer:
    """Train a model."""
    if "out" not in values:
        raise OptionError(f"expected `erasure train {'|'.join(RECIPES)}`, the kind before its options")
    recipe = _recipe(values.kind)
    result = import_module("erasure.training.train").train(
        build(recipe.kind, f"train {values.kind}", recipe.given(values)),
        values.data,
        values.out,
        data_dir=values.data_dir,
        image_size=values.image_size,
        limit=values.limit,
        seed=values.seed,
        resume=values.resume,
    )
    return {"out": values.out, "model": f"{values.out}/model", **result.to_dict()}, lines_of


def _recipe(kind: str) -> Fields:
    module, _, name = RECIPES[kind].partition(":")
    return Fields(getattr(import_module(module), name))
