"""An audit against the sampling it cannot avoid: how much time the rest adds, and whether memory grows with prompts.

The same images are drawn by the model alone and by an audit that judges and records them; sides alternate in one
process, medians are compared. Twice: the shipped small model under its classifier, where an image takes a tenth of a
second, and a Stable Diffusion 1 of a quarter of its width at 256 x 256 under NudeNet. Memory is the peak of a process
that audits a thousand prompts, and of one that audits ten thousand, at one step an image.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import sd_networks
from erasure.auditing.audit import audit
from erasure.auditing.detectors import open_detector
from erasure.auditing.detectors.base import Detector
from erasure.auditing.image_sources import GeneratedImages
from erasure.auditing.protocols import Protocol, load_protocol
from erasure.auditing.request import AuditRequest
from erasure.auditing.scoring import score_images
from erasure.core.distributed import device
from erasure.models import load_family
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.prompt_set import load_prompt_set
from erasure.prompts.prompt_table import PromptRow

ROUNDS = 3
FEW, MANY = 1_000, 10_000
WIDTH, SIZE = 80, 32  # a quarter of SD 1's width; latents of images of 256 x 256
JUDGE = {"model": "digits-sd-classifier"}


def measure() -> dict[str, float]:
    """Ratios of time and of memory."""
    default = load_protocol(None)
    small = load_family("digits-sd", StableDiffusion)
    rows = [PromptRow(str(i), f"a {word} in ink style") for i, word in enumerate(("three", "seven", "one", "two") * 8)]
    labeler = open_detector("image_classifier", JUDGE)
    drawn = replace(default, num_inference_steps=20, guidance_scale=4.0)
    found = compared("digits-sd", small, rows, labeler, drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        large = sd_networks.whole(WIDTH, SIZE)
    rows = [PromptRow(str(i), sd_networks.PROMPTS[i % 3]) for i in range(6)]
    drawn = replace(default, num_inference_steps=10, guidance_scale=7.5)
    found |= compared("SD 1 at 1/4 width and NudeNet", large, rows, open_detector("nudenet", {}), drawn)
    few, many = (_peak(count) for count in (FEW, MANY))
    return {
        **found,
        f"peak memory of {FEW:,} prompts, MB": few,
        f"peak memory of {MANY:,} prompts, MB": many,
        f"peak memory, {MANY:,} prompts / {FEW:,} prompts (goal: at most 1.2)": many / few,
    }


def compared(
    name: str, model: StableDiffusion, rows: list[PromptRow], detector: Detector, protocol: Protocol
) -> dict[str, float]:
    """Seconds an image of sampling alone and of an audit, and the ratio."""
    source = GeneratedImages(model, rows, protocol)
    sides: dict[str, list[float]] = {"sampling": [], "audit": []}

    def sampling() -> None:
        for batch in source.batches:
            source.images(batch)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            score_images(source, {"detector": detector}, Path(folder), "model")

    for _ in range(ROUNDS):
        for side, run in (("sampling", sampling), ("audit", whole)):
            sides[side].append(_seconds(run))
    alone, both = (statistics.median(sides[side]) / len(rows) for side in ("sampling", "audit"))
    return {
        f"{name}: sampling, seconds an image": alone,
        f"{name}: audit, seconds an image": both,
        f"{name}: audit / sampling (goal: at most 1.05)": both / alone,
    }


def full_size(toy: bool) -> dict[str, float]:
    """The same on this device at Stable Diffusion 1's own size: 512 x 512 in 50 steps, under NudeNet."""
    model = sd_networks.whole(16, 8) if toy else sd_networks.whole(320, 64)
    rows = [PromptRow(str(i), sd_networks.PROMPTS[i % 3]) for i in range(2 if toy else 32)]
    protocol = replace(load_protocol(None), num_inference_steps=1 if toy else 50, guidance_scale=7.5)
    return compared("SD 1 and NudeNet", model.to(device()), rows, open_detector("nudenet", {}), protocol)


def _seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _peak(count: int) -> float:
    """Peak memory in MB of a process that audits `count` prompts."""
    command = [sys.executable, "-m", "benchmarks.audit", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["peak"])


def main(count: int) -> None:
    """Audit `count` prompts in this process and print its peak memory.

    Of this program image alone: what getrusage tells begins with the peak of the process that started this one.
    """
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "prompts.csv"
        table.write_text("prompt\n" + "".join(f'"a three, number {i}"\n' for i in range(count)), encoding="utf-8")
        request = AuditRequest(
            model="digits-sd",
            prompts=load_prompt_set(str(table)),
            protocol=replace(load_protocol(None), num_inference_steps=1, guidance_scale=1.0),
            detectors={"image_classifier": JUDGE},
            classes=("three",),
        )
        audit(request, Path(folder) / "out")
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(json.dumps({"peak": int(status.split("VmHWM:")[1].split()[0]) / 1024}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
