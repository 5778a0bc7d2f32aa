"""Values for a dataclass from layers, and its fields as flags."""

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from erasure.core.config import add_flags, build, given_flags
from erasure.core.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Options:
    rate: Annotated[float, "share, 100% at most"] = 0.5
    kind: Annotated[Literal["a", "b"], "which"] = "a"
    deep: Annotated[bool, "go deep"] = False
    limit: Annotated[int | None, "at most"] = None


@dataclass(frozen=True, kw_only=True)
class Needy(Options):
    strength: Annotated[float, "how strongly"]


def _given(kind, *arguments):
    parser = argparse.ArgumentParser()
    add_flags(parser, kind)
    return given_flags(kind, vars(parser.parse_args(arguments)))


def test_what_was_not_given_is_not_there():
    assert _given(Options) == {}
    assert _given(Options, "--rate", "0.5", "--no-deep") == {"rate": 0.5, "deep": False}


def test_later_layers_win_and_defaults_fill_the_rest():
    assert build(Options, "x", {"rate": 0.1, "limit": 3}, {"rate": 0.2}) == Options(rate=0.2, limit=3)


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(OptionError, match="x has no option 'rat' \\(did you mean 'rate'"):
        build(Options, "x", {"rat": 1})


def test_a_field_without_a_value_is_named():
    with pytest.raises(OptionError, match="x needs a value for `strength`"):
        build(Needy, "x", {"rate": 0.1})
    assert build(Needy, "x", {"strength": 2.0}).strength == 2.0


def test_a_field_whose_flag_is_taken_is_named():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate")
    with pytest.raises(OptionError, match=r"Options\.rate: `rate`"):
        add_flags(parser, Options)


def test_help_may_hold_a_percent_sign():
    parser = argparse.ArgumentParser()
    add_flags(parser, Options)
    assert "100% at most" in parser.format_help()
