"""kill -9 at an arbitrary moment of every long verb, then the same command: the end is the same, bit for bit."""

import signal
import time

import pytest

from tests.conftest import process

pytestmark = pytest.mark.slow


def _digest(folder, patterns):
    """What a verb leaves that must not depend on the kill: weights and pictures."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


VERBS = {
    "train": (
        (
            "train",
            "ddpm",
            "--data",
            "digits",
            "--steps",
            40,
            "--batch-size",
            32,
            "--channels",
            "16,32",
            "--checkpoint-every",
            3,
        ),
        lambda out: (out / "log.jsonl").is_file() and (out / "log.jsonl").read_text().count("\n") >= 7,
        ("model/unet/*.safetensors", "model/samples.png"),
    ),
    "train sd": (
        (
            *("train", "sd", "--data", "digits_styles", "--limit", 1100, "--channels", "16,32", "--batch-size", 8),
            *("--steps", 30, "--vae-steps", 12, "--vae-channels", "8,8,8", "--vae-batch-size", 8),
            *("--checkpoint-every", 3),
        ),
        lambda out: (out / "log.jsonl").is_file() and (out / "log.jsonl").read_text().count("\n") >= 7,
        ("model/unet/*.safetensors", "model/vae/*.safetensors", "model/text_encoder/*.safetensors", "model/*.png"),
    ),
    "erase": (
        (
            "erase",
            "--forget",
            3,
            "--steps",
            40,
            "--batch-size",
            16,
            "--checkpoint-every",
            3,
            "--num-images",
            3,
            "--num-inference-steps",
            3,
        ),
        lambda out: (out / "log.jsonl").is_file() and (out / "log.jsonl").read_text().count("\n") >= 7,
        ("model/unet/*.safetensors", "mask.safetensors", "samples/*/*.png"),
    ),
    "mask": (
        ("mask", "--forget", "3,4,5", "--saliency-batch-size", 2, "--checkpoint-every", 5),
        lambda out: (out.parent / f".{out.name}.partial").is_file(),
        None,
    ),
    "generate": (
        ("generate", "--num-images", 12, "--num-inference-steps", 15, "--sample-batch-size", 8),
        lambda out: len(list(out.glob("*/*.png"))) >= 16,
        ("*/*.png", "grid.png"),
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_command_continues_to_the_same_bits(verb, ddpm_folder, cli, tmp_path):
    arguments, begun, patterns = VERBS[verb]
    if not verb.startswith("train"):
        arguments = (*arguments, "--model", ddpm_folder)
    name = "m.safetensors" if verb == "mask" else "out"
    whole, killed = tmp_path / "whole" / name, tmp_path / "killed" / name
    for out in (whole, killed):
        out.parent.mkdir()
    assert cli(*arguments, "--out", whole).code == 0

    child = process(*arguments, "--out", killed)
    deadline = time.monotonic() + 120
    while not begun(killed) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, f"it ended before it could be killed: {err}"

    again = process(*arguments, "--out", killed)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    if patterns is None:  # the mask's provenance holds its seconds; its bits must agree
        from erasure.saliency.mask import Mask

        one, two = Mask.load(whole), Mask.load(killed)
        assert all(one.tensors[key].equal(two.tensors[key]) for key in one.tensors)
        assert not (killed.parent / f".{killed.name}.partial").exists()
    else:
        expected = _digest(whole, patterns)
        assert len(expected) >= 2 and _digest(killed, patterns) == expected
    assert not list((killed if killed.is_dir() else killed.parent).rglob(".*.tmp"))


def test_a_full_disk_leaves_nothing_half_written(ddpm_folder, tmp_path):
    """The limit on file size stands for a disk that fills up while weights are written."""
    import resource
    import subprocess
    import sys

    limit = 60_000  # the log fits, a checkpoint and the model do not
    command = [
        "erase",
        "--model",
        ddpm_folder,
        "--forget",
        "3",
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--no-evaluate",
        "--mask",
        "none",
    ]
    child = subprocess.run(
        [sys.executable, "-m", "erasure", *map(str, command), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert child.returncode == 1, child.stderr
    assert child.stderr.startswith("erasure: cannot write") and child.stderr.count("\n") == 1, child.stderr
    assert not (tmp_path / "run" / "model").exists()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]
    again = process(*command, "--out", tmp_path / "run")
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert (tmp_path / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_two_commands_on_one_folder(ddpm_folder, tmp_path):
    command = ("erase", "--model", ddpm_folder, "--forget", 3, "--steps", 400, "--batch-size", 16, "--no-evaluate")
    first = process(*command, "--out", tmp_path / "run")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "log.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = process(*command, "--out", tmp_path / "run")
    _, err = second.communicate(timeout=120)
    assert second.returncode == 1 and "in use by another process" in err
    first.kill()
    first.communicate()
