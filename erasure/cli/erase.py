"""`erasure erase`: its options depend on the method that is chosen, so they are read in two stages."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import (
    Fields,
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
from erasure.core.errors import OptionError

SALIENCY_FLAGS = {"guidance_scale": "saliency_guidance_scale"}  # --guidance-scale is that of the samples


def parser(argv: Sequence[str]) -> Parser:
    """The options of `erase` for the method that `argv` names, or those of a repetition."""
    made = parser_of(
        "erase",
        "erasure erase --model digits-ddpm --forget 3 --method salun --out run",
        "erasure erase --model digits-sd --concept digits/neon --out run-sd",
    )
    made.add_argument("--config", metavar="FILE", help="run.json of an earlier run, to repeat it bit for bit")
    made.add_argument("--method", default="salun", help="see `erasure list methods` (default salun)")
    early = made.early(argv)
    made.add_argument("--out", metavar="DIR", required=True, help="folder of the run")
    if early.config:
        made.set_defaults(method=None)
    else:
        _add_flags(made, early.method)
    return made


def run(values: argparse.Namespace) -> Answer:
    """Erase classes, samples or a concept from a model, or repeat an earlier run."""
    erasing = import_module("erasure.erasing.erase")
    if values.config:
        if values.method is not None:
            raise OptionError("--config repeats the method of its run: leave --method out")
        return erasing.repeat(values.config, values.out), shown_run
    request = erasing.EraseRequest(
        model=values.model,
        target=target_given(values),
        method=values.method,
        mask=values.mask,
        preset=values.preset,
        seed=values.seed,
        options=Fields(registry.load("methods", values.method)).given(values),
        saliency=_saliency().given(values),
        evaluation=import_module("erasure.evaluation.settings").EvaluationConfig().replaced(evaluation_given(values)),
        evaluate=values.evaluate,
        probe_every=values.probe_every,
    )
    return erasing.erase(request, values.out), shown_run


def _add_flags(made: Parser, method: str) -> None:
    """Add all options but those that choose the method, whose own options are among them."""
    kind = registry.load("methods", method)
    made.about = f" --method {method}"
    model_flag(made)
    made.add_argument(
        "--mask", help=f"saliency, none, random, inverted, or a file (default of {method}: {kind.default_mask})"
    )
    made.add_argument("--preset", help=f"named set of options ({', '.join(kind.presets) or 'this method has none'})")
    made.add_argument("--seed", type=int, default=0, help="seed of everything that is random (default 0)")
    made.add_argument(
        "--evaluate", action=argparse.BooleanOptionalAction, default=True, help="measure the result (default yes)"
    )
    made.add_argument(
        "--probe-every",
        type=int,
        default=0,
        metavar="STEPS",
        help="measure UA and RA every so many steps (default 0, never)",
    )
    target_flags(made)
    Fields(kind).add_to(made.add_argument_group(f"options of {method}", _other_defaults(method, kind)))
    _saliency().add_to(made.add_argument_group("how weights are scored for the mask"))
    evaluation_flags(made)


def _saliency() -> Fields:
    return Fields(import_module("erasure.saliency.scores").SaliencyConfig, SALIENCY_FLAGS)


def _other_defaults(method: str, kind: Any) -> str | None:
    """Which families and shipped models have other defaults than those that the help shows."""
    tables = import_module("erasure.erasing.method_defaults")
    others = {", ".join(families): values for families, values in tables.defaults_by_family(method).items()}
    others |= {f"the model {name}": values for name, values in tables.defaults_by_shipped_model(method).items()}
    if not others:
        return None
    rest = ", ".join(family for family in registry.names("models") if family not in kind.defaults_of)
    lines = [
        textwrap.fill(f"{who}: {_written(kind, values)}", 100, subsequent_indent="  ", break_on_hyphens=False)
        for who, values in others.items()
    ]
    return "\n".join([f"The defaults below are those of {rest}. Others have their own:", *lines])


def _written(kind: Any, values: Mapping[str, Any]) -> str:
    own = {name: value for name, value in values.items() if name != "saliency"}
    return f"{Fields(kind).written(own)} {_saliency().written(values.get('saliency', {}))}".strip()
