import json
import os

import pytest

from erasure.core.errors import OutputError, RunError
from erasure.core.files import atomic_folder, atomic_path, write_json
from erasure.core.run_dir import Log, RunDir, read_log


def test_a_folder_belongs_to_its_settings(tmp_path):
    with RunDir(tmp_path / "r", "erase", {"steps": 1, "options": {"alpha": 2}}):
        pass
    with RunDir(tmp_path / "r", "erase", {"options": {"alpha": 2}, "steps": 1}) as again:
        assert not again.done
        again.finish({"ua": 1.0})
    with RunDir(tmp_path / "r", "erase", {"steps": 1, "options": {"alpha": 2}}) as finished:
        assert finished.done and finished.result == {"ua": 1.0}
    with pytest.raises(RunError, match=r"options.alpha: 2 there, 3 now"):
        RunDir(tmp_path / "r", "erase", {"steps": 1, "options": {"alpha": 3}})
    with pytest.raises(RunError, match="made by `erasure erase`"):
        RunDir(tmp_path / "r", "train", {"steps": 1})


def test_two_processes_cannot_hold_one_folder(tmp_path):
    with RunDir(tmp_path / "r", "erase", {}), pytest.raises(RunError, match="in use by another process"):
        RunDir(tmp_path / "r", "erase", {})
    with RunDir(tmp_path / "r", "erase", {}):
        pass


def test_foreign_files_and_missing_runs_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds no run"):
        RunDir(tmp_path, "erase", {})
    with pytest.raises(RunError, match="no run to resume"):
        RunDir(tmp_path / "new", "train", {}, must_exist=True)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".draft.tmp").write_text("mine too")
    with pytest.raises(RunError, match="holds no run"):
        RunDir(tmp_path, "erase", {})
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "deep" / ".draft.tmp").read_text() == "mine too"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    with atomic_folder(tmp_path / "f") as temporary:
        (temporary / "x").write_text("old")
    with pytest.raises(OutputError, match="No space left"), atomic_folder(tmp_path / "f") as temporary:
        (temporary / "x").write_text("half")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "f" / "x").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_resumed_log_repeats_no_step_and_survives_a_cut_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"ste')
    log = Log(path, [record for record in read_log(path) if record["step"] < 2])
    log.write({"step": 2, "again": True})
    log.close()
    assert read_log(path) == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path):
    import subprocess
    import sys

    from erasure.core.files import write_text

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f".a.txt.{dead.pid}.tmp", tmp_path / f".a.txt.{dead.pid}.x.tmp"]
    left[0].write_text("half")
    left[1].mkdir()
    others = [tmp_path / f".a.txt.{os.getpid()}.tmp", tmp_path / f".b.txt.{dead.pid}.tmp", tmp_path / ".a.txt.keep.tmp"]
    for other in others:
        other.write_text("of somebody else")
    write_text(tmp_path / "a.txt", "whole")
    assert not any(path.exists() for path in left)
    assert [path.exists() for path in others] == [False, True, True]  # the first was our own name, replaced
