"""What a command does when its surroundings are not as it wishes: closed pipes, full disks, remains of a launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (("--help",), ("list", "methods"), ("erase", "--help"), ("list", "things"), ("nonsense",))


def _closed_pipe():
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_closed_pipe_ends_a_command_quietly(arguments, stream):
    other = "stderr" if stream == "stdout" else "stdout"
    pipe = _closed_pipe()
    try:
        streams = {stream: pipe, other: subprocess.PIPE}
        done = subprocess.run([sys.executable, "-m", "erasure", *arguments], text=True, timeout=60, **streams)
    finally:
        os.close(pipe)
    assert done.returncode in (0, 2, 141)
    assert "Traceback" not in (getattr(done, other) or "") and "BrokenPipe" not in (getattr(done, other) or "")


def test_a_list_whose_reader_is_gone_exits_as_shells_report_a_closed_pipe():
    pipe = _closed_pipe()
    try:
        done = subprocess.run([sys.executable, "-m", "erasure", "list", "methods"], stdout=pipe, stderr=subprocess.PIPE)
    finally:
        os.close(pipe)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "erasure", "list", "methods"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "could not be printed" in done.stderr


@pytest.mark.parametrize(
    "left",
    [{"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}, {"LOCAL_RANK": "1"}],
    ids=str,
)
def test_remains_of_a_launcher_do_not_change_what_a_verb_does(cli, monkeypatch, ddpm_folder, tmp_path, left):
    small = ("--num-images", 2, "--num-inference-steps", 2, "--json")
    command = ("generate", "--model", ddpm_folder, "--classes", 0, *small, "--out")
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-m", "erasure", *map(str, command), str(tmp_path / "g")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in left:
        monkeypatch.delenv(name)
    again = cli(*command, tmp_path / "h").json
    assert len(list((tmp_path / "g").glob("*/*.png"))) == again["images"] == 2
    for one, two in zip(
        sorted((tmp_path / "g").glob("*/*.png")), sorted((tmp_path / "h").glob("*/*.png")), strict=True
    ):
        assert one.read_bytes() == two.read_bytes()
