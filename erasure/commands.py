"""The verbs: each reads its flags, calls the library, and says how its result is shown.

torch and the model libraries are imported by the verb that needs them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from erasure import registry
from erasure.errors import OptionError
from erasure.options import add_flags, build, given_flags
from erasure.parser import Parser, data_flags, judging_flags, judging_given, parser_of

Answer = tuple[Any, bool, Callable[[Any], str]]  # the result, whether as JSON, and how to show it otherwise


def demo(argv: Sequence[str]) -> Answer:
    """Run the demonstration."""
    parser = parser_of("demo", "erasure demo --out demo", "erasure demo --out demo-full --full --seeds 3")
    parser.add_argument("--out", default="demo", help="folder for the run and its report (default demo)")
    parser.add_argument("--full", action="store_true", help="also the controls and baselines, over several seeds")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds with --full (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    values = parser.read(argv)
    if values.seeds < 1:
        raise OptionError(f"--seeds {values.seeds} must be at least 1")
    result = import_module("erasure.demo").demo(values.out, full=values.full, seeds=values.seeds, seed=values.seed)
    return result, values.json, lambda found: f"{_table(found['rows'])}\n\nreport: {found['report']}"


def train(argv: Sequence[str]) -> Answer:
    """Train a model."""
    kinds = ("ddpm", "classifier")
    examples = (
        "erasure train ddpm --data digits --out my-ddpm --steps 2500 --seed 1",
        "erasure train classifier --data digits --arch resnet-digits --out my-classifier --steps 1500",
    )
    if not argv or argv[0] not in kinds:
        parser = parser_of("train", *examples)
        parser.add_argument("kind", choices=kinds, help="what to train; its own options: erasure train ddpm --help")
        parser.read(argv)
        raise OptionError("expected `erasure train ddpm` or `erasure train classifier`, the kind before its options")
    recipes = import_module("erasure.recipe")
    recipe = {"ddpm": recipes.DDPMRecipe, "classifier": recipes.ClassifierRecipe}[argv[0]]
    parser = parser_of(f"train {argv[0]}", *examples)
    data_flags(parser, required=True)
    parser.add_argument("--out", required=True, help="folder for the model, its card and its log")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default 0)")
    parser.add_argument("--limit", type=int, help="train on so many images, even over the classes")
    parser.add_argument("--resume", action="store_true", help="continue; an error when there is nothing to continue")
    add_flags(parser, recipe)
    values = parser.read(argv[1:])
    result = import_module("erasure.train").train(
        build(recipe, f"train {argv[0]}", given_flags(recipe, vars(values))),
        values.data,
        values.out,
        data_dir=values.data_dir,
        image_size=values.image_size,
        limit=values.limit,
        seed=values.seed,
        resume=values.resume,
    )
    return {"out": values.out, "model": f"{values.out}/model", **result}, values.json, _lines


def mask(argv: Sequence[str]) -> Answer:
    """Compute a mask."""
    saliency = import_module("erasure.saliency").SaliencySettings
    parser = parser_of(
        "mask",
        "erasure mask --model digits-ddpm --forget 3 --density 0.5 --out mask.safetensors",
        "erasure mask --model digits-ddpm --forget 3 --score square_sum --out fisher.safetensors --json",
    )
    parser.add_argument("--model", required=True, help="a shipped name, a folder, a run, or a hub id")
    parser.add_argument("--forget", required=True, help="classes to forget, by index or name, joined by commas")
    parser.add_argument("--out", required=True, help="the safetensors file to write")
    parser.add_argument(
        "--kind",
        choices=("saliency", "random", "inverted"),
        default="saliency",
        help="which weights (default saliency)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and timesteps (default 0)")
    parser.add_argument("--checkpoint-every", type=int, default=50, help="batches between checkpoints (default 50)")
    data_flags(parser)
    add_flags(parser, saliency)
    values = parser.read(argv)
    result = import_module("erasure.make_mask").make_mask(
        values.model,
        values.forget,
        values.out,
        build(saliency, "the mask", given_flags(saliency, vars(values))),
        kind=values.kind,
        data=values.data,
        data_dir=values.data_dir,
        image_size=values.image_size,
        seed=values.seed,
        checkpoint_every=values.checkpoint_every,
    )
    return result, values.json, _shown_mask


def erase(argv: Sequence[str]) -> Answer:
    """Erase classes from a model."""
    parser = parser_of(
        "erase",
        "erasure erase --model digits-ddpm --forget 3 --method salun --out run",
        "erasure erase --model digits-ddpm --forget 3,5 --method finetune --steps 20 --out run-ft",
    )
    parser.add_argument("--config", help="run.json of an earlier run, to repeat it bit for bit")
    parser.add_argument("--method", default="salun", help="see `erasure list methods` (default salun)")
    early, _ = parser.parse_known_args([part for part in argv if part not in ("-h", "--help")])
    parser.add_argument("--out", required=True, help="the run folder")
    if early.config:
        values = parser.read(argv)
        if any(part.split("=")[0] == "--method" for part in argv):
            raise OptionError("--config repeats the method of its run: leave --method out")
        return import_module("erasure.erase").repeat(values.config, values.out), values.json, _shown_run
    kind = _erase_flags(parser, early.method)
    values = parser.read(argv)
    request = import_module("erasure.erase").Request(
        model=values.model,
        forget=values.forget,
        method=values.method,
        mask=values.mask,
        preset=values.preset,
        data=values.data,
        data_dir=values.data_dir,
        image_size=values.image_size,
        seed=values.seed,
        options=given_flags(kind, vars(values)),
        saliency=given_flags(import_module("erasure.saliency").SaliencySettings, _without_prefix(values)),
        judging=import_module("erasure.evaluate").Judging().replaced(judging_given(values)),
        evaluate=values.evaluate,
        probe_every=values.probe_every,
    )
    return import_module("erasure.erase").erase(request, values.out), values.json, _shown_run


def _erase_flags(parser: Parser, method: str) -> Any:
    """Add the flags of `erase`, those of the method too; returns the method's class."""
    kind = registry.load("methods", method)
    parser.add_argument("--model", required=True, help="a shipped name, a folder, a run, or a hub id")
    parser.add_argument("--forget", required=True, help="classes to forget, by index or name, joined by commas")
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
    data_flags(parser)
    add_flags(parser.add_argument_group(f"options of {method}"), kind)
    group = parser.add_argument_group("how weights are scored for the mask")
    saliency = import_module("erasure.saliency").SaliencySettings
    add_flags(group, saliency, prefix_of={"guidance_scale": "saliency_guidance_scale"})
    judging_flags(parser)
    return kind


def _without_prefix(values: argparse.Namespace) -> dict[str, Any]:
    """`--saliency-guidance-scale` is the scoring's; `--guidance-scale` is the samples'."""
    found = {key: value for key, value in vars(values).items() if key != "guidance_scale"}
    if "saliency_guidance_scale" in found:
        found["guidance_scale"] = found["saliency_guidance_scale"]
    return found


def generate(argv: Sequence[str]) -> Answer:
    """Draw images."""
    settings = import_module("erasure.samples").SampleSettings
    parser = parser_of(
        "generate",
        "erasure generate --model digits-ddpm --classes 0,1,2 --num-images 16 --out samples",
        "erasure generate --model digits-ddpm --classes three --num-images 4 --seed 7 --out threes",
    )
    parser.add_argument("--model", required=True, help="a shipped name, a folder, a run, or a hub id")
    parser.add_argument("--classes", help="classes by index or name, joined by commas (default: all)")
    parser.add_argument("--out", required=True, help="folder for the images and grid.png")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    add_flags(parser, settings)
    values = parser.read(argv)
    chosen = build(settings, "sampling", given_flags(settings, vars(values)))
    result = import_module("erasure.generate").generate(values.model, values.classes, values.out, chosen, values.seed)
    return result, values.json, lambda found: f"{found['images']} images, {found['grid']}"


def evaluate(argv: Sequence[str]) -> Answer:
    """Measure a run or a model."""
    parser = parser_of(
        "evaluate",
        "erasure evaluate digits-ddpm --forget 3",
        "erasure evaluate digits-ddpm --metrics ra,fd_classifier --num-images 20 --json",
    )
    parser.add_argument("run", help="a run of `erasure erase`, or a model")
    parser.add_argument("--forget", help="classes that should be gone (of a model; a run brings its own)")
    data_flags(parser)
    judging_flags(parser)
    values = parser.read(argv)
    result = import_module("erasure.evaluate").evaluate(
        values.run,
        judging=judging_given(values),
        forget=values.forget,
        data=values.data,
        data_dir=values.data_dir,
        image_size=values.image_size,
    )
    return result, values.json, _shown_run


def compare(argv: Sequence[str]) -> Answer:
    """Put runs side by side."""
    parser = parser_of(
        "compare", "erasure compare run run-ft", "erasure compare run run-ft --html comparison.html --json"
    )
    parser.add_argument("runs", nargs="+", help="finished runs of `erasure erase`")
    parser.add_argument("--html", help="also write a page")
    values = parser.read(argv)
    return (
        import_module("erasure.compare").compare(values.runs, values.html),
        values.json,
        lambda found: _table(found["rows"]),
    )


def export(argv: Sequence[str]) -> Answer:
    """Write a cleaned model for other tools, or apply a delta."""
    parser = parser_of(
        "export",
        "erasure export run --format safetensors --out cleaned.safetensors",
        "erasure export --apply cleaned.delta.safetensors --to digits-ddpm --out cleaned",
    )
    parser.add_argument("run", nargs="?", help="a finished run of `erasure erase`")
    parser.add_argument("--format", help="diffusers (a folder), safetensors (one file) or delta (what changed)")
    parser.add_argument("--apply", metavar="DELTA", help="apply a delta instead")
    parser.add_argument("--to", metavar="MODEL", help="the original model the delta is applied to")
    parser.add_argument("--out", required=True, help="where to write")
    values = parser.read(argv)
    module = import_module("erasure.export")
    if values.apply:
        if not values.to or values.run:
            parser.error("--apply DELTA takes --to MODEL and no run")
        result = module.apply_delta(values.apply, values.to, values.out)
    else:
        if not values.run or not values.format:
            parser.error("expected RUN --format diffusers|safetensors|delta")
        result = module.export(values.run, values.format, values.out)
    return result, values.json, lambda found: f"{found['out']} ({found['format']}, {found['bytes']:,} bytes)"


def list_(argv: Sequence[str]) -> Answer:
    """List the plug-ins of a folder."""
    parser = parser_of("list", "erasure list methods", "erasure list metrics --json")
    parser.add_argument("folder", choices=registry.FOLDERS, help="what to list")
    values = parser.read(argv)
    found = [{"name": name, "summary": registry.summary(values.folder, name)} for name in registry.names(values.folder)]
    return {values.folder: found}, values.json, lambda _: "\n".join(item["summary"] for item in found)


def _table(rows: Sequence[Any]) -> str:
    report = import_module("erasure.report")
    return str(report.as_text(report.table(rows)))


def _shown_run(result: Any) -> str:
    name = result.get("method") or result.get("model")
    rows = [{"name": name, **result}]
    if result.get("original") and "method" in result:
        rows.insert(0, {"name": "original", **result["original"]})
    lines = [_table(rows)]
    lines += [f"{name} not measured: {why}" for name, why in result.get("not_measured", {}).items()]
    if "run" in result:
        lines += ["", f"model: {result['run']}/model", f"report: {result['run']}/report.html"]
    return "\n".join(lines)


def _shown_mask(result: Any) -> str:
    blocks = [
        f"  {name:28}{values['density']:8.3f} of {values['weights']:,}" for name, values in result["blocks"].items()
    ]
    head = (
        f"{result['mask']}: {result['selected']:,} of {result['weights']:,} weights (density {result['density']:.6f})"
    )
    return "\n".join([head, *blocks])


def _lines(result: Any) -> str:
    return "\n".join(f"{key}: {value}" for key, value in result.items())
