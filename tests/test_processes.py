"""Two processes under `accelerate launch` equal one."""

import json
import subprocess
import sys

import torch

from erasure.models import load_model
from tests.conftest import process


def test_two_processes_equal_one(ddpm_folder, tmp_path):
    common = ("erase", "--model", ddpm_folder, "--forget", 3, "--steps", 4, "--batch-size", 16, "--optimizer", "sgd")
    common = (*common, "--learning-rate", 0.01, "--num-images", 2, "--num-inference-steps", 2, "--json")
    alone = process(*common, "--out", tmp_path / "one", OMP_NUM_THREADS="1")
    launch = [
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    together = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.accelerate_cli",
            *launch,
            "-m",
            "erasure",
            *map(str, common),
            "--out",
            tmp_path / "two",
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    out, err = alone.communicate(timeout=280)
    assert alone.returncode == 0, err
    assert together.returncode == 0, together.stderr
    one, two = json.loads(out), json.loads(together.stdout)
    assert two["metrics"]["ua"]["n"] == one["metrics"]["ua"]["n"] == 2
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-6)
    states = [load_model(tmp_path / name).network.state_dict() for name in ("one", "two")]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-4, atol=1e-5, msg=name)
