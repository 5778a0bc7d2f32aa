"""kill -9 in the middle of a request to forget: the same request completes it, and meanwhile nobody else is served."""

import shutil
import signal
import time

import pytest

from erasure.core.errors import RunError
from erasure.core.files import read_json
from erasure.exact import fit, forget, predict
from erasure.exact.hash_log import HashLog
from erasure.exact.sisa import Sisa
from tests.conftest import process


def _states(folder):
    return {path.name: path.read_bytes() for path in (folder / "states").iterdir()}


@pytest.mark.slow
def test_a_request_that_was_killed_is_completed_to_the_same_bits(tmp_path):
    method = Sisa(arch="resnet-digits", shards=2, slices=4, epochs=3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit("sisa", method, "digits", whole)
    ids = [sample for slices in read_json(whole / "plan.json")["units"].values() for sample in slices[0][:2]]
    before = set(_states(shutil.copytree(whole, killed)))
    forget(whole, ids)

    child = process("exact", "forget", killed, "--ids", ",".join(map(str, ids)))
    deadline, others = time.monotonic() + 120, 0
    while others < 2 and child.poll() is None and time.monotonic() < deadline:
        others = len(set(_names(killed)) - before)
        time.sleep(0.002)
    for refused in (lambda: forget(killed, [1]), lambda: predict(killed, tmp_path)):
        with pytest.raises(RunError, match="in use by another process"):
            refused()
    child.send_signal(signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, f"it ended before it could be killed: {err}"
    assert (killed / "pending.json").is_file() and before <= set(_names(killed))

    again = process("exact", "forget", killed, "--ids", ",".join(map(str, ids)))
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert err.count("training") < len(_names(killed)) == 8, "what was finished before the kill was made again"
    assert _states(killed) == _states(whole) and not before & set(_names(killed))
    assert not (killed / "pending.json").exists() and HashLog(killed / "log.jsonl").broken() == ""


def _names(folder):
    return [path.name for path in (folder / "states").iterdir() if path.suffix == ".safetensors"]
