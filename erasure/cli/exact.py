"""erasure exact"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import Parser, data_flags, parser_of
from erasure.cli.output import Answer, lines_of
from erasure.core import registry
from erasure.core.config import add_flags, build, given_flags
from erasure.core.errors import OptionError

FIT = "erasure exact fit --method arcane --data digits --epochs 10 --out service"
EXAMPLES = {
    "fit": (FIT, "erasure exact fit --method sisa --data digits --arch resnet-digits --shards 4 --out shards"),
    "forget": ("erasure exact forget service --ids 5,17", "erasure exact forget service --ids requests.txt --json"),
    "predict": ("erasure exact predict service --images drawn", "erasure exact predict service --images 7.png --json"),
    "verify": ("erasure exact verify service", "erasure exact verify service --json"),
}


def run(argv: Sequence[str]) -> Answer:
    """Keep a classifier that forgets samples exactly."""
    verbs = {"fit": _fit, "forget": _forget, "predict": _predict, "verify": _verify}
    if not argv or argv[0] not in verbs:
        parser = parser_of("exact", FIT, EXAMPLES["forget"][0])
        parser.add_argument("what", choices=verbs, help="its own options: erasure exact fit --help")
        parser.read(argv)
        raise OptionError(f"expected `erasure exact {'|'.join(verbs)}`, the verb before its options")
    return verbs[argv[0]](_parser(argv[0]), argv[1:])


def code(result: Any) -> int:
    """The exit code: 3 when a verification fails, as for the verdict of an audit."""
    return 0 if result.get("exact", True) else 3


def _parser(verb: str) -> Parser:
    parser = parser_of(f"exact {verb}", *EXAMPLES[verb])
    if verb != "fit":
        parser.add_argument("folder", metavar="DIR", help="folder of `erasure exact fit`")
    return parser


def _fit(parser: Parser, argv: Sequence[str]) -> Answer:
    names = registry.names("exact")
    parser.add_argument("--method", choices=names, default="sisa", help="shards, or a model a class (default sisa)")
    early, _ = parser.parse_known_args([part for part in argv if part not in ("-h", "--help")])
    kind = registry.load("exact", early.method)
    data_flags(parser, required=True)
    parser.add_argument("--out", required=True, help="folder for the plan, the states and the log")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default 0)")
    parser.add_argument(
        "--likely", default="", help="ids (5,17, or a file) that will probably be forgotten; last to come"
    )
    add_flags(parser.add_argument_group(f"options of {early.method}"), kind)
    values = parser.read(argv)
    result = import_module("erasure.exact").fit(
        values.method,
        build(kind, values.method, given_flags(kind, vars(values))),
        values.data,
        values.out,
        data_dir=values.data_dir,
        image_size=values.image_size,
        seed=values.seed,
        likely=values.likely,
    )
    return result.to_dict(), values.json, lines_of


def _forget(parser: Parser, argv: Sequence[str]) -> Answer:
    parser.add_argument(
        "--ids", required=True, help="samples by id, such as 5,17, or a file: one a line, or a JSON list"
    )
    values = parser.read(argv)
    result = import_module("erasure.exact").forget(values.folder, values.ids)
    return result.to_dict(), values.json, lines_of


def _predict(parser: Parser, argv: Sequence[str]) -> Answer:
    parser.add_argument("--images", required=True, metavar="PATH", help="an image, or a folder of images")
    values = parser.read(argv)
    return import_module("erasure.exact").predict(values.folder, values.images).to_dict(), values.json, _said


def _verify(parser: Parser, argv: Sequence[str]) -> Answer:
    values = parser.read(argv)
    result = import_module("erasure.exact").verify(values.folder)
    return result.to_dict(), values.json, _verified


def _said(result: Any) -> str:
    return "\n".join(f"{found['image']}: {found['class']} ({found['score']:.4g})" for found in result["predictions"])


def _verified(result: Any) -> str:
    limits = [f"not claimed: {sentence}" for sentence in result["not_claimed"]]
    return "\n".join([lines_of({key: value for key, value in result.items() if key != "not_claimed"}), *limits])
