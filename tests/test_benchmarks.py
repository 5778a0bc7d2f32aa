"""The benchmarks run and compare like with like; no time is asserted."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import mask as mask_benchmark
from benchmarks import step
from benchmarks.official import official_mask
from erasure.mask import Mask
from tests.conftest import CIFAR10, ROOT


def test_both_masks_select_the_same_weights():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(50, 7, generator=generator) for name in "ab"}
    ours, theirs = Mask.top(scores, 0.3).tensors, official_mask(scores, 0.3)
    assert all(ours[name].equal(theirs[name].bool()) for name in scores)


def test_the_step_benchmark_measures_all_three(monkeypatch):
    monkeypatch.setattr(step, "STEPS", 1)
    monkeypatch.setattr(step, "ROUNDS", 1)
    monkeypatch.setattr(step, "SIZE", 4)
    found = step.measure()
    assert sum("seconds a step" in name for name in found) == 3 and all(value > 0 for value in found.values())


def test_the_mask_benchmark_checks_what_it_times(monkeypatch):
    monkeypatch.setattr(mask_benchmark, "WEIGHTS", 4000)
    assert mask_benchmark._alone("ours")["seconds"] > 0 and mask_benchmark._alone("official")["peak"] >= 0


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 archives are not beside the checkout")
def test_the_gpu_script_runs_at_toy_size_and_goes_on_where_it_stopped(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--toy",
        "--minutes",
        "0.05",
        "--data-dir",
        str(CIFAR10),
        "--out",
        str(tmp_path),
    ]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert first.returncode == 0, first.stderr
    stages = [json.loads(line) for line in first.stdout.splitlines()]
    assert [next(iter(stage)) for stage in stages] == ["device", "correct", "plan", "classifier", "ddpm", "judged"]
    assert stages[1]["correct"]["mask_holds_bit_for_bit"] is True
    assert len(list((tmp_path / "ddpm" / "model" / "unet").glob("*.safetensors"))) > 1
    (tmp_path / "judged.json").unlink()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert again.returncode == 0 and "ddpm:" not in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["judged"]["ra"]["n"] == 40
