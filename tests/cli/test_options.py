"""The option layer: what was not given stays out, and every mistake is one line."""

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from erasure.cli.options import Fields
from erasure.core.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Options:
    rate: Annotated[float, "share, 100% at most"] = 0.5
    kind: Annotated[Literal["a", "b"], "which"] = "a"
    deep: Annotated[bool, "go deep"] = False
    limit: Annotated[int | None, "at most"] = None


def _given(fields, *arguments):
    parser = argparse.ArgumentParser()
    fields.add_to(parser)
    return fields.given(parser.parse_args(arguments))


def test_what_was_not_given_is_not_there():
    assert _given(Fields(Options)) == {}
    assert _given(Fields(Options), "--rate", "0.5", "--no-deep") == {"rate": 0.5, "deep": False}


def test_a_field_may_have_another_flag():
    assert _given(Fields(Options, {"rate": "my_rate"}), "--my-rate", "1", "--limit", "2") == {"rate": 1, "limit": 2}
    prefixed = Fields.prefixed(Options, "nudenet")
    assert _given(prefixed, "--nudenet-kind", "b", "--nudenet-deep") == {"kind": "b", "deep": True}
    assert prefixed.written({"rate": 0.5, "deep": False}) == "--nudenet-rate 0.5 --no-nudenet-deep"


def test_a_field_whose_flag_is_taken_is_named():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate")
    with pytest.raises(OptionError, match=r"Options\.rate: `rate`"):
        Fields(Options).add_to(parser)


def test_help_may_hold_a_percent_sign():
    parser = argparse.ArgumentParser()
    Fields(Options).add_to(parser)
    assert "100% at most (default 0.5)" in parser.format_help()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--model", "digits-sd", "--classes", "1", "--prompt", "x", "--out", "o"), "give one"),
        (("export", "--apply", "d", "--out", "o"), "--apply DELTA takes --to MODEL"),
        (("export", "run", "--out", "o"), "expected RUN --format"),
    ],
)
def test_options_that_make_no_command_together_are_a_usage_error(cli, arguments, message):
    outcome = cli(*arguments)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("train", "--json", "ddpm"), ("exact", "--json", "fit"), ("exact", "--json", "verify")]
)
def test_what_chooses_the_options_comes_first(refused, arguments):
    assert "before its options" in refused(*arguments)


def test_a_repetition_takes_no_method(refused, tmp_path):
    line = refused("erase", "--config", tmp_path / "run.json", "--method", "salun", "--out", tmp_path / "run")
    assert "leave --method out" in line
