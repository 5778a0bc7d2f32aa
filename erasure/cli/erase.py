"""erasure erase"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import (
    Parser,
    evaluation_flags,
    evaluation_given,
    model_flag,
    parser_of,
    target_flags,
    target_given,
)
from erasure.cli.output import Answer, shown_run
from erasure.core import registry
from erasure.core.config import add_flags, as_flags, given_flags
from erasure.core.errors import ModelError, OptionError
from erasure.core.files import read_json

SALIENCY_FLAGS = {"guidance_scale": "saliency_guidance_scale"}  # the samples have one too, under its own name


def run(argv: Sequence[str]) -> Answer:
    """Erase classes or a concept from a model."""
    parser = parser_of(
        "erase",
        "erasure erase --model digits-ddpm --forget 3 --method salun --out run",
        "erasure erase --model digits-sd --concept digits/neon --out run-sd",
    )
    parser.add_argument("--config", help="run.json of an earlier run, to repeat it bit for bit")
    parser.add_argument("--method", default="salun", help="see `erasure list methods` (default salun)")
    early, _ = parser.parse_known_args([part for part in argv if part not in ("-h", "--help")])
    parser.add_argument("--out", required=True, help="the run folder")
    if early.config:
        values = parser.read(argv)
        if any(part.split("=")[0] == "--method" for part in argv):
            raise OptionError("--config repeats the method of its run: leave --method out")
        return import_module("erasure.erasing.erase").repeat(values.config, values.out), values.json, shown_run
    kind = _erase_flags(parser, early.method)
    values = parser.read(argv)
    request = import_module("erasure.erasing.erase").EraseRequest(
        model=values.model,
        target=target_given(values),
        method=values.method,
        mask=values.mask,
        preset=values.preset,
        seed=values.seed,
        options=given_flags(kind, vars(values)),
        saliency=given_flags(import_module("erasure.saliency.scores").SaliencyConfig, _without_prefix(values)),
        evaluation=import_module("erasure.evaluation.settings").EvaluationConfig().replaced(evaluation_given(values)),
        evaluate=values.evaluate,
        probe_every=values.probe_every,
    )
    return import_module("erasure.erasing.erase").erase(request, values.out), values.json, shown_run


def _erase_flags(parser: Parser, method: str) -> Any:
    """Add the flags of `erase`, those of the method too; returns the method's class."""
    kind = registry.load("methods", method)
    parser.about = f" --method {method}"
    model_flag(parser)
    parser.add_argument(
        "--mask", help=f"saliency, none, random, inverted, or a file (default of {method}: {kind.default_mask})"
    )
    parser.add_argument("--preset", help=f"named set of options ({', '.join(kind.presets) or 'this method has none'})")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default 0)")
    parser.add_argument(
        "--evaluate", action=argparse.BooleanOptionalAction, default=True, help="measure the result (default yes)"
    )
    parser.add_argument(
        "--probe-every", type=int, default=0, help="look at UA and RA every so many steps (default 0, never)"
    )
    target_flags(parser)
    add_flags(parser.add_argument_group(f"options of {method}", _other_defaults(method, kind)), kind)
    group = parser.add_argument_group("how weights are scored for the mask")
    add_flags(group, import_module("erasure.saliency.scores").SaliencyConfig, SALIENCY_FLAGS)
    evaluation_flags(parser)
    return kind


def _other_defaults(method: str, kind: Any) -> str | None:
    """For whom the defaults of the help are not those it shows, from the tables that decide them."""
    models = import_module("erasure.models")
    families: dict[str, list[str]] = {}
    for family, values in kind.defaults_of.items():
        families.setdefault(_flags_of(values), []).append(family)
    others = {", ".join(names): flags for flags, names in families.items()}
    for name in models.shipped_names():
        path = models.shipped_folder() / name / "erase.json"
        card = read_json(path, ModelError) if path.is_file() else {}
        if method in card:
            others[f"the model {name}"] = _flags_of({**card.get("training_images", {}), **card[method]})
    if not others:
        return None
    rest = ", ".join(family for family in registry.names("models") if family not in kind.defaults_of)
    lines = [
        textwrap.fill(f"{who}: {flags}", 100, subsequent_indent="  ", break_on_hyphens=False)
        for who, flags in others.items()
    ]
    return "\n".join([f"The defaults that are shown are those of {rest}. Others have their own:", *lines])


def _flags_of(values: Mapping[str, Any]) -> str:
    own = {name: value for name, value in values.items() if name != "saliency"}
    return f"{as_flags(own)} {as_flags(values.get('saliency', {}), SALIENCY_FLAGS)}".strip()


def _without_prefix(values: argparse.Namespace) -> dict[str, Any]:
    """`--saliency-guidance-scale` is the scoring's; `--guidance-scale` is the samples'."""
    found = {key: value for key, value in vars(values).items() if key != "guidance_scale"}
    if SALIENCY_FLAGS["guidance_scale"] in found:
        found["guidance_scale"] = found[SALIENCY_FLAGS["guidance_scale"]]
    return found
