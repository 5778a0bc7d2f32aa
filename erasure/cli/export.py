"""`erasure export`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from erasure.cli.options import Parser, parser_of
from erasure.cli.output import Answer
from erasure.cli.verbs import UsageError


def parser(argv: Sequence[str]) -> Parser:
    """The options of `export`."""
    made = parser_of(
        "export",
        "erasure export run --format safetensors --out cleaned.safetensors",
        "erasure export --apply cleaned.delta.safetensors --to digits-ddpm --out cleaned",
    )
    made.add_argument("run", nargs="?", help="a finished run of `erasure erase`")
    made.add_argument(
        "--format",
        help="diffusers (a folder), single-file (a checkpoint for ComfyUI and A1111), unet (its tensors alone), "
        "safetensors (the network in one file; for Stable Diffusion: single-file), delta (what changed), or lora",
    )
    made.add_argument("--dtype", help="float16, bfloat16 or float32 (default: what the base came in; float32 for lora)")
    made.add_argument("--rank", type=int, default=8, help="rank of a LoRA (default 8)")
    made.add_argument("--lora-keys", default="kohya", help="kohya (ComfyUI, A1111, diffusers) or peft (default kohya)")
    made.add_argument("--base", metavar="MODEL", help="the model that the run was made from, if it is now elsewhere")
    made.add_argument("--apply", metavar="DELTA", help="apply this delta to --to, in place of exporting a run")
    made.add_argument(
        "--to", metavar="MODEL", help="the model that --apply changes: the delta's own, or another fine-tune"
    )
    made.add_argument("--out", required=True, help="file or folder to write")
    return made


def run(values: argparse.Namespace) -> Answer:
    """Write a cleaned model for other tools, or apply a delta."""
    module = import_module("erasure.exporting.export")
    if values.apply:
        if not values.to or values.run or values.format:
            raise UsageError("--apply DELTA takes --to MODEL, and neither a run nor --format")
        result = module.apply_delta(values.apply, values.to, values.out, dtype=values.dtype)
    else:
        if not values.run or not values.format:
            raise UsageError("expected RUN --format diffusers|single-file|safetensors|unet|delta|lora")
        result = module.export(
            values.run,
            values.format,
            values.out,
            dtype=values.dtype,
            rank=values.rank,
            lora_keys=values.lora_keys,
            base=values.base,
        )
    return result, _shown


def _shown(found: Any) -> str:
    lines = [f"{found['out']} ({found['format']}, {found['bytes']:,} bytes)"]
    lora = found["provenance"].get("lora")
    if lora:
        worst, left = lora["worst"], lora["left_out"]
        lines += [
            f"rank {lora['rank']}: {100 * lora['relative_error']:.3g} % of the change of {lora['layers']} layers is "
            f"missing, at worst {100 * worst['relative_error']:.3g} % ({worst['layer']})",
            f"left out: {left['tensors']} norms and biases, {left['weights']:,} weights, "
            f"{100 * left['share_of_change']:.3g} % of the change",
        ]
    return "\n".join(lines)
