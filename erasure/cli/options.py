"""The option layer: the parser of a verb, fields of a dataclass as flags, and the groups of flags that verbs share."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from erasure.cli.output import paint
from erasure.cli.verbs import VERBS
from erasure.core.errors import OptionError, suggestion

if TYPE_CHECKING:
    from erasure.erasing.targets import TargetSpec


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and a suggestion for an unknown option."""

    about = ""  # what decides, beside the verb, which options there are
    skip = 0  # how many words of the command line chose this parser

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
        self.exit(2, f"{paint(f'{self.prog}:', 'red', sys.stderr)} {message}; see `{self.prog} --help`\n")

    def early(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of the flags that decide which others there are."""
        words = [word for word in argv[self.skip :] if word not in ("-h", "--help")]
        return self.parse_known_args(words)[0]

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse `argv`; raises OptionError for an option that is not known."""
        values, unknown = self.parse_known_args(list(argv[self.skip :]))
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = suggestion(unknown[0].split("=")[0], options)
            raise OptionError(f"{self.prog}{self.about} has no option {unknown[0]}{near}")
        return values


class Fields:
    """The fields of a dataclass as flags: `name: Annotated[type, "help"] = default` is read from `--name`.

    A flag that was not given leaves no value, so that defaults of several origins (paper, family, model card, preset)
    can be laid over each other in a known order. `flags` names the flags of fields whose own names are taken.
    """

    def __init__(self, kind: Any, flags: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.flags = {field.name: (flags or {}).get(field.name, field.name) for field in dataclasses.fields(kind)}

    @classmethod
    def prefixed(cls, kind: Any, prefix: str) -> Fields:
        """The fields of `kind` as flags that begin with `prefix`."""
        return cls(kind, {field.name: f"{prefix}_{field.name}" for field in dataclasses.fields(kind)})

    def add_to(self, group: argparse._ActionsContainer) -> None:
        """Add a flag for each field; raises OptionError for one that `group` has already."""
        hints = typing.get_type_hints(self.kind, include_extras=True)
        for field in dataclasses.fields(self.kind):
            base, text = _split(hints[field.name])
            if dataclasses.is_dataclass(base) or base is tuple:
                continue
            flag = _flag(self.flags[field.name])
            text = f"{text}{_default_note(field)}".replace("%", "%%")
            try:
                group.add_argument(flag, default=argparse.SUPPRESS, help=text, **_reader(base))
            except argparse.ArgumentError as error:
                name = f"{self.kind.__name__}.{field.name}"
                raise OptionError(f"{name}: {flag} is an option already: rename the field") from error

    def given(self, values: argparse.Namespace) -> dict[str, Any]:
        """The fields that were given on the command line."""
        return {name: getattr(values, flag) for name, flag in self.flags.items() if hasattr(values, flag)}

    def written(self, values: Mapping[str, Any]) -> str:
        """`values` of fields as they would be given on the command line."""
        return " ".join(_written(self.flags.get(name, name), value) for name, value in values.items())


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _written(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _flag(name if value else f"no_{name}")
    return f"{_flag(name)} {value}"


def _split(hint: Any) -> tuple[Any, str]:
    """The plain type of an annotation (None left out) and its help text."""
    text = ""
    if hasattr(hint, "__metadata__"):
        text, hint = str(hint.__metadata__[0]), hint.__origin__
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint, text


def _default_note(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING or field.default is None or field.default == "":
        return ""
    return f" (default {field.default})"


def _reader(base: Any) -> dict[str, Any]:
    """How argparse reads a value of the type `base`."""
    if base is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices = typing.get_args(base) if typing.get_origin(base) is Literal else None
    return {"type": str, "choices": choices} if choices else {"type": base, "metavar": base.__name__.upper()}


def parts(text: str | None) -> tuple[str, ...]:
    """The names in a list that commas separate."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def parser_of(verb: str, *examples: str) -> Parser:
    """Make the parser of a verb that prints a result; its help ends with `examples`."""
    parser = Parser(verb, examples)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--quiet", action="store_true", help="show no notes and no progress, only warnings and errors")
    level.add_argument("--verbose", action="store_true", help="also show details, and the traceback of an error")
    return parser


def data_flags(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add the flags for which data is meant."""
    text = (
        "digits, digits_styles, cifar10, cifar100, svhn, tiny_imagenet, a folder or archive of class folders, or a hub "
        "id"
    )
    parser.add_argument(
        "--data", required=required, help=text + ("" if required else " (default: what the model was trained on)")
    )
    parser.add_argument("--data-dir", help="folder of a named data set")
    parser.add_argument("--image-size", type=int, help="resize images to this size")


def model_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag for which model is meant."""
    parser.add_argument(
        "--model", required=True, help="a shipped name, a folder, a .safetensors or .ckpt file, a run, or a hub id"
    )


def target_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for what is to be forgotten, in classes or in words, and for its data."""
    from erasure.erasing.targets.generated_images import TrainingImageOptions

    parser.add_argument(
        "--forget",
        help="classes by index or name, by commas; for a classifier also random:0.1, ids:5,17, ids:FILE, mislabelled; "
        "words for a text-to-image model",
    )
    group = parser.add_argument_group("what a text-to-image model is to forget")
    group.add_argument("--concept", help="presets of prompts/ (nudity, van-gogh, imagenette/church, ...) or CSV files")
    group.add_argument("--anchor", help="what replaces --forget: one for all, or one for each (default: nothing)")
    group.add_argument("--retain", help="prompts to keep, by commas, or a CSV file (default: everyday prompts)")
    Fields(TrainingImageOptions).add_to(group)
    data_flags(parser)


def target_given(values: argparse.Namespace) -> TargetSpec:
    """Make the specification of what is to be forgotten from the flags of `target_flags`."""
    from erasure.erasing.targets import TargetSpec
    from erasure.erasing.targets.generated_images import TrainingImageOptions

    names = ("forget", "data", "data_dir", "image_size", "concept", "anchor", "retain")
    training_images = Fields(TrainingImageOptions).given(values)
    return TargetSpec(**{name: getattr(values, name) for name in names}, training_images=training_images)


def evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for how a result is measured."""
    from erasure.sampling.draw import SamplingOptions

    group = parser.add_argument_group("how the result is measured")
    group.add_argument("--metrics", help="names by commas (default: all that apply without further files)")
    group.add_argument("--classifier", help="model that labels the samples (default: the one that ships for the data)")
    group.add_argument("--clip", help="CLIP model for clip_score and cmmd, a folder or a hub id")
    group.add_argument("--dinov2", help="DINOv2 model for fd_dinov2, a folder or a hub id")
    group.add_argument("--inception", help="Inception weights for fid and kid (.safetensors or .pth)")
    group.add_argument("--retrained", help="classifier trained without the forget set for avg_gap, a run or a model")
    group.add_argument("--sample-seed", type=int, help="seed of the samples (default 0)")
    Fields(SamplingOptions).add_to(group)


def evaluation_given(values: argparse.Namespace) -> dict[str, Any]:
    """The fields of EvaluationConfig and SamplingOptions that were given on the command line."""
    from erasure.sampling.draw import SamplingOptions

    named = {
        key: getattr(values, key) for key in ("classifier", "inception", "clip", "dinov2", "retrained", "sample_seed")
    }
    given: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    if values.metrics:
        given["metrics"] = parts(values.metrics)
    return {**given, **Fields(SamplingOptions).given(values)}
