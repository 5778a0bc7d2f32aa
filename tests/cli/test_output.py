"""What a command says of its work, and in which colours."""

import io

import pytest

from erasure.cli.output import paint


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colour_is_for_terminals_whose_user_does_not_refuse_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("x", "red", _Terminal()) == "\033[31mx\033[0m"
    assert paint("x", "red", io.StringIO()) == paint("x", "red", None) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red", _Terminal()) == "x"
    monkeypatch.setenv("NO_COLOR", "")  # as no-color.org says: only when it is not empty
    monkeypatch.setenv("TERM", "dumb")
    assert paint("x", "red", _Terminal()) == "x"


@pytest.mark.parametrize(
    ("flags", "notes", "details"),
    [((), True, False), (("--quiet",), False, False), (("--verbose",), True, True)],
)
def test_quiet_and_verbose(cli, ddpm_folder, tmp_path, flags, notes, details):
    command = (
        "erase",
        "--model",
        ddpm_folder,
        "--forget",
        3,
        "--method",
        "gradient_ascent",
        "--steps",
        1,
        "--batch-size",
        2,
    )
    command = (*command, "--memory", "low", "--no-evaluate", "--out", tmp_path / "run")
    outcome = cli(*command, *flags)
    assert outcome.code == 0, outcome.err
    assert ("estimated memory" in outcome.err) == notes
    assert ("erase took" in outcome.err) == details


def test_verbose_shows_where_an_error_came_from(cli, refused, tmp_path):
    command = ("erase", "--model", "nowhere", "--forget", 3, "--out", tmp_path / "run")
    line = refused(*command)
    assert "Traceback" not in line
    outcome = cli(*command, "--verbose")
    assert outcome.code == 1 and "Traceback" in outcome.err and outcome.err.endswith(line)
