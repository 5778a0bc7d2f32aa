"""Who sees notes, warnings and details: a notebook, and the command line at each of its levels."""

import logging
import subprocess
import sys

import pytest

from erasure.core.logging import log_debug, log_user, log_warning, progress, shown


def _say_all():
    log_debug("a detail")
    log_user("a note about --num-images")
    log_warning("a warning")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("quiet", "warning: a warning\n"),
        ("normal", "a note about `num_images`\nwarning: a warning\n"),
        ("verbose", "a detail\na note about `num_images`\nwarning: a warning\n"),
    ],
)
def test_each_level_shows_what_it_says(capsys, level, expected):
    with shown(level, "warning: "):
        _say_all()
    _say_all()
    err = capsys.readouterr().err
    assert err.startswith(expected) and "a note" not in err.removeprefix(expected)


def test_a_python_program_sees_warnings_without_asking_for_them():
    code = "from erasure.core.logging import log_user, log_warning; log_user('a note'); log_warning('a warning')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "a warning\n")


def test_the_levels_are_those_of_logging(caplog):
    with caplog.at_level(logging.DEBUG, "erasure"):
        _say_all()
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO", "WARNING"]


def test_only_the_main_process_logs(caplog, monkeypatch):
    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.DEBUG, "erasure"):
        _say_all()
    assert not caplog.records


@pytest.mark.parametrize(("level", "bars"), [("quiet", False), ("normal", True)])
def test_quiet_hides_progress_on_a_terminal_too(capsys, monkeypatch, level, bars):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with shown(level, ""):
        assert list(progress(range(2), desc="work", file=sys.stderr)) == [0, 1]
    assert ("work" in capsys.readouterr().err) == bars
