"""`erasure exact`: what to do with a service is the first word."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import Fields, Parser, data_flags, parser_of
from erasure.cli.output import Answer, lines_of
from erasure.core import registry
from erasure.core.config import build
from erasure.core.errors import OptionError

FIT = "erasure exact fit --method arcane --data digits --epochs 10 --out service"
EXAMPLES = {
    "fit": (FIT, "erasure exact fit --method sisa --data digits --arch resnet-digits --shards 4 --out shards"),
    "forget": ("erasure exact forget service --ids 5,17", "erasure exact forget service --ids requests.txt --json"),
    "predict": ("erasure exact predict service --images drawn", "erasure exact predict service --images 7.png --json"),
    "verify": ("erasure exact verify service", "erasure exact verify service --json"),
}
SUBVERBS = tuple(EXAMPLES)


def parser(argv: Sequence[str]) -> Parser:
    """The options of what `argv` begins with: fit, forget, predict or verify."""
    if not argv or argv[0] not in SUBVERBS:
        made = parser_of("exact", FIT, EXAMPLES["forget"][0])
        made.add_argument("what", choices=SUBVERBS, help="its options: erasure exact fit --help")
        return made
    made = parser_of(f"exact {argv[0]}", *EXAMPLES[argv[0]])
    made.skip = 1
    made.set_defaults(what=argv[0])
    if argv[0] == "fit":
        _fit_flags(made, argv)
        return made
    made.add_argument("folder", metavar="DIR", help="folder of `erasure exact fit`")
    if argv[0] == "forget":
        text = "samples by id, such as 5,17, or a file: one a line, or a JSON list"
        made.add_argument("--ids", required=True, help=text)
    elif argv[0] == "predict":
        made.add_argument("--images", required=True, metavar="PATH", help="an image, or a folder of images")
    return made


def run(values: argparse.Namespace) -> Answer:
    """Make a service of classifiers, let it forget samples, let it predict, or verify it."""
    exact = import_module("erasure.exact")
    if values.what == "fit":
        return _fit(values), lines_of
    if "folder" not in values:
        raise OptionError(f"expected `erasure exact {'|'.join(SUBVERBS)}`, the verb before its options")
    if values.what == "forget":
        return exact.forget(values.folder, values.ids), lines_of
    if values.what == "predict":
        return exact.predict(values.folder, values.images), _said
    return exact.verify(values.folder), _verified


def code(result: Any) -> int:
    """The exit code: 3 when a verification fails, as for the verdict of an audit."""
    return 0 if result.get("exact", True) else 3


def _fit_flags(made: Parser, argv: Sequence[str]) -> None:
    names = registry.names("exact")
    made.add_argument("--method", choices=names, default="sisa", help="shards, or a model a class (default sisa)")
    method = made.early(argv).method
    data_flags(made, required=True)
    made.add_argument("--out", metavar="DIR", required=True, help="folder for the plan, the states and the log")
    made.add_argument("--seed", type=int, default=0, help="seed of everything that is random (default 0)")
    text = "ids (5,17, or a file) that will probably be forgotten: they are trained on last"
    made.add_argument("--likely", default="", help=text)
    Fields(registry.load("exact", method)).add_to(made.add_argument_group(f"options of {method}"))


def _fit(values: argparse.Namespace) -> Any:
    if "out" not in values:
        raise OptionError(f"expected `erasure exact {'|'.join(SUBVERBS)}`, the verb before its options")
    options = Fields(registry.load("exact", values.method))
    return import_module("erasure.exact").fit(
        values.method,
        build(options.kind, values.method, options.given(values)),
        values.data,
        values.out,
        data_dir=values.data_dir,
        image_size=values.image_size,
        seed=values.seed,
        likely=values.likely,
    )


def _said(result: Any) -> str:
    return "\n".join(f"{found['image']}: {found['class']} ({found['score']:.4g})" for found in result["predictions"])


def _verified(result: Any) -> str:
    limits = [f"not claimed: {sentence}" for sentence in result["not_claimed"]]
    return "\n".join([lines_of({key: value for key, value in result.items() if key != "not_claimed"}), *limits])
