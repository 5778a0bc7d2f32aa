"""The parts of the command line that verbs share: one-line errors, a help that ends with commands, common flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from erasure.core.config import add_flags, given_flags
from erasure.core.errors import OptionError, suggestion

VERBS = {
    "demo": "erase a digit from the model that ships, measure it and show it",
    "train": "train a DDPM, a small Stable Diffusion or a classifier from nothing",
    "exact": "keep a classifier as a service that forgets single samples exactly",
    "influence": "rank the training samples of a classifier: which to look at first for wrong labels",
    "mask": "compute which weights are salient for what is to be forgotten",
    "erase": "erase classes or a concept from a model into a run folder",
    "generate": "draw images from a model or a run",
    "evaluate": "measure a run or a model",
    "audit": "draw prompts, or take images, and say what a detector sees: counts, intervals, a verdict",
    "compare": "put runs or audits side by side",
    "benchmark": "compare methods over scenarios and seeds, in one table beside the original",
    "export": "write a cleaned model for other tools",
    "verify": "say what a file is, and prove what changed in it",
    "list": "list methods, metrics, models, data or concepts",
}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and a suggestion for an unknown option."""

    about: str = ""  # what decides, beside the verb, which options there are

    def __init__(self, verb: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=f"erasure {verb}",
            description=VERBS[verb.split()[0]].capitalize() + ".",
            epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit 2."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse `argv`; raises OptionError for an option that is not known."""
        values, unknown = self.parse_known_args(list(argv))
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = suggestion(unknown[0].split("=")[0], options)
            raise OptionError(f"{self.prog}{self.about} has no option {unknown[0]}{near}")
        return values


def parser_of(verb: str, *examples: str) -> Parser:
    """The parser of a verb that prints a result; its help ends with `examples`."""
    parser = Parser(verb, examples)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--quiet", action="store_true", help="show no notes and no progress, only warnings and errors")
    level.add_argument("--verbose", action="store_true", help="also show details, and the traceback of an error")
    return parser


def data_flags(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Flags for which data is meant."""
    text = (
        "digits, digits_styles, cifar10, cifar100, svhn, tiny_imagenet, a folder or archive of class folders, or a hub "
        "id"
    )
    parser.add_argument(
        "--data", required=required, help=text + ("" if required else " (default: what the model was trained on)")
    )
    parser.add_argument("--data-dir", help="where a named data set lies on disk")
    parser.add_argument("--image-size", type=int, help="bring images to this size")


def model_flag(parser: argparse.ArgumentParser) -> None:
    """The flag for which model is meant."""
    parser.add_argument(
        "--model", required=True, help="a shipped name, a folder, a .safetensors or .ckpt file, a run, or a hub id"
    )


def target_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for what is to be forgotten, in classes or in words, and for the data behind it."""
    from erasure.erasing.targets.generated_images import TrainingImageOptions

    parser.add_argument(
        "--forget",
        help="classes by index or name, by commas; for a classifier also random:0.1, ids:5,17, ids:FILE, mislabelled; "
        "words for a text-to-image model",
    )
    group = parser.add_argument_group("what a text-to-image model is to forget")
    group.add_argument("--concept", help="presets of prompts/ (nudity, van-gogh, imagenette/church, ...) or CSV files")
    group.add_argument(
        "--anchor", help="what takes the place of --forget: one for all, or one for each (default: nothing)"
    )
    group.add_argument("--retain", help="prompts to keep, joined by commas, or a CSV file (default: everyday prompts)")
    add_flags(group, TrainingImageOptions)
    data_flags(parser)


def target_given(values: argparse.Namespace) -> Any:
    """What the flags of `target_flags` ask for."""
    from erasure.erasing.targets import TargetSpec
    from erasure.erasing.targets.generated_images import TrainingImageOptions

    names = ("forget", "data", "data_dir", "image_size", "concept", "anchor", "retain")
    training_images = given_flags(TrainingImageOptions, vars(values))
    return TargetSpec(**{name: getattr(values, name) for name in names}, training_images=training_images)


def evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for how a result is judged."""
    from erasure.sampling.draw import SamplingOptions

    group = parser.add_argument_group("how the result is judged")
    group.add_argument("--metrics", help="names joined by commas (default: all that apply without further files)")
    group.add_argument("--classifier", help="model that judges samples (default: the one that ships for the data)")
    group.add_argument("--clip", help="CLIP model for clip_score and cmmd, a folder or a hub id")
    group.add_argument("--dinov2", help="DINOv2 model for fd_dinov2, a folder or a hub id")
    group.add_argument("--inception", help="Inception weights for fid and kid (.safetensors or .pth)")
    group.add_argument("--retrained", help="classifier trained without the forget set for avg_gap, a run or a model")
    group.add_argument("--sample-seed", type=int, help="seed of the samples (default 0)")
    add_flags(group, SamplingOptions)


def evaluation_given(values: argparse.Namespace) -> dict[str, Any]:
    """The fields of EvaluationConfig and SamplingOptions that were given on the command line."""
    from erasure.sampling.draw import SamplingOptions

    named = {
        key: getattr(values, key) for key in ("classifier", "inception", "clip", "dinov2", "retrained", "sample_seed")
    }
    given: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    if values.metrics:
        given["metrics"] = tuple(part.strip() for part in values.metrics.split(",") if part.strip())
    return {**given, **given_flags(SamplingOptions, vars(values))}
