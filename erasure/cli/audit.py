"""`erasure audit`: its options depend on the detectors, which the protocol may name, so they are read in two stages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import Fields, Parser, parser_of, parts
from erasure.cli.output import Answer, paint
from erasure.core import registry

VERDICT_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def parser(argv: Sequence[str]) -> Parser:
    """The options of `audit` for the detectors that `argv` or its protocol names."""
    made = parser_of(
        "audit",
        "erasure audit cleaned.safetensors --prompts i2p.csv --protocol i2p-esd --base base.safetensors --out audit",
        "erasure audit --images drawn --max-rate 0.01 --out audit-images",
    )
    made.add_argument("--detector", help="detectors by commas; the first decides (default: the protocol's, nudenet)")
    made.add_argument("--protocol", help="default, i2p-esd, i2p-spm, i2p-sld, or a JSON file (default: default)")
    early = made.early(argv)
    protocol = import_module("erasure.auditing.protocols").load_protocol(early.protocol)
    names = tuple(dict.fromkeys(parts(early.detector))) or protocol.detectors
    made.set_defaults(detectors=names)
    _flags(made)
    for name in names:
        _detector(name).add_to(made.add_argument_group(f"options of {name}"))
    _measuring_flags(made)
    return made


def run(values: argparse.Namespace) -> Answer:
    """Audit a model, or a folder of images."""
    detectors = {name: _detector(name).given(values) for name in values.detectors}
    return _audited(values, detectors), shown


def code(result: Any) -> int:
    """The exit code of a verdict: 0 pass or none asked for, 3 fail, 4 inconclusive."""
    return int(import_module("erasure.auditing.verdict").EXIT_CODES[result["verdict"]])


def shown(result: Any) -> str:
    """The verdict in words, the counts, where the report is."""
    counts = ", ".join(f"{result[name]} {name}" for name in ("planned", "generated", "scored", "failed", "refused"))
    word = paint(result["verdict"], VERDICT_COLOURS.get(result["verdict"], ""), sys.stdout)
    lines = [f"verdict: {word}", *(f"  {reason}" for reason in result["reasons"]), result["claim"], counts]
    if result["base_rate"]:
        lines.append(f"base: {_rate(result['base_rate'])}; model: {_rate(result['rate'])}")
    if result["paired"]:
        pair = result["paired"]
        alone = f"{pair['only_base']} in the base alone, {pair['only_model']} in the model alone"
        lines.append(f"paired: {alone}, p = {pair['p_value']:.2g}")
    lines += [f"{name}: {_score(score)}" for name, score in result["metrics"].items()]
    lines += [f"{name} not measured: {why}" for name, why in result["not_measured"].items()]
    return "\n".join([*lines, f"report: {result['out']}/report.html"])


def _rate(rate: Any) -> str:
    if not rate["n"]:
        return "nothing scored"
    low, high = (100 * end for end in rate["interval"])
    return f"{rate['count']} of {rate['n']} images ({100 * rate['value']:.1f} % [{low:.1f}, {high:.1f}])"


def _score(score: Any) -> str:
    interval = "" if score["interval"] is None else " [{:.3g}, {:.3g}]".format(*score["interval"])
    return f"{score['value']:.4g}{interval}{' ' if score['unit'] else ''}{score['unit']} (n = {score['n']})"


def _flags(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a shipped name, folder, weights file, run or hub id")
    parser.add_argument("--images", metavar="DIR", help="audit these images in place of a model")
    parser.add_argument("--base", help="the model before it was cleaned (with --images: its images), for paired tests")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for audit.json, the report and the records")
    parser.add_argument("--max-rate", type=float, help="limit for the verdict, a share such as 0.01")
    parser.add_argument("--detect", metavar="CLASSES", help="classes that count, by commas (default: the detector's)")
    parser.add_argument("--threshold", type=float, help="score from which a class counts (default: the protocol's)")
    parser.add_argument("--positive-control", metavar="DIR", help="images that the detector must flag")
    parser.add_argument("--negative-control", metavar="DIR", help="images that the detector must not flag")
    parser.add_argument("--keep-images", action="store_true", help="keep the generated images, pixelated in the report")
    parser.add_argument("--reference", metavar="DIR", help="real images for fid, kid, ... (default: the base's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of rows without one (default 0)")
    group = parser.add_argument_group("which prompts")
    group.add_argument("--prompts", help="i2p, i2p:sexual-931, i2p:nudity-95, a preset of prompts/, or a CSV file")
    group.add_argument("--categories", help="only rows of these categories, by commas")
    group.add_argument("--min-nudity", help='only rows whose nudity_percentage is at least this; or e.g. ">50"')
    group.add_argument("--hard", action=argparse.BooleanOptionalAction, help="only rows marked hard, or not hard")
    group.add_argument("--rows", help="only these row ids, such as 1-10,17")
    group.add_argument("--limit", type=int, help="only this many rows, the first ones")


def _measuring_flags(parser: Parser) -> None:
    group = parser.add_argument_group("how images are generated, in place of the protocol's settings")
    group.add_argument("--num-images", type=int, dest="images_per_prompt", help="images per prompt")
    group.add_argument("--num-inference-steps", type=int, help="denoising steps")
    group.add_argument("--guidance-scale", type=float, help="classifier-free guidance of every row")
    group.add_argument("--sampler", help="ddim, pndm, lms, euler or dpmsolver")
    group.add_argument(
        "--sample-batch-size", type=int, default=0, help="images generated at once (default: as their size allows)"
    )
    group = parser.add_argument_group("what else is measured on the same images")
    group.add_argument("--metrics", help="names by commas (default: all that the networks below allow)")
    group.add_argument("--clip", help="CLIP model for clip_score and cmmd, a folder or a hub id")
    group.add_argument("--dinov2", help="DINOv2 model for fd_dinov2, a folder or a hub id")
    group.add_argument("--inception", help="Inception weights for fid and kid (.safetensors or .pth)")
    group.add_argument("--classifier", help="classifier for fd_classifier and paired_distance")


def _detector(name: str) -> Fields:
    return Fields.prefixed(registry.load("detectors", name).Options, name)


def _audited(values: argparse.Namespace, detectors: dict[str, dict[str, Any]]) -> Any:
    """The call of `audit_model` that the flags ask for."""
    same = (
        *("model", "images", "base", "prompts", "protocol", "threshold", "max_rate", "positive_control", "out"),
        *("negative_control", "keep_images", "reference", "seed", "sampler", "guidance_scale", "images_per_prompt"),
        *("num_inference_steps", "min_nudity", "hard", "rows", "limit"),
    )
    names = ("clip", "inception", "dinov2", "classifier")
    given = {name: getattr(values, name) for name in names} | {"metrics": parts(values.metrics)}
    return import_module("erasure.auditing.api").audit_model(
        **{name: getattr(values, name) for name in same},
        categories=parts(values.categories),
        detectors=detectors,
        classes=parts(values.detect),
        evaluation=import_module("erasure.evaluation.settings").EvaluationConfig().replaced(given),
        batch_size=values.sample_batch_size,
    )
