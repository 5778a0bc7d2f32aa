"""A mask of 50 million synthetic weights: time and peak memory, against the official double argsort with int64.

Each side runs in a process of its own, so that its peak is its own. Peak memory counts the scores themselves on both
sides and leaves out what the libraries take.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

WEIGHTS = 50_000_000
SHAPES = 40


def measure() -> dict[str, float]:
    """Seconds, peak bytes and the ratios."""
    found = {}
    for name in ("ours", "official"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.mask", name], check=True, capture_output=True, text=True
        )
        found[name] = json.loads(done.stdout)
    return {
        **{f"{name}, seconds": value["seconds"] for name, value in found.items()},
        **{f"{name}, peak MB with the scores": value["peak"] / 1e6 for name, value in found.items()},
        "time, ours / official (goal: at most 0.25)": found["ours"]["seconds"] / found["official"]["seconds"],
        "peak memory, ours / official (goal: at most 0.4)": found["ours"]["peak"] / found["official"]["peak"],
    }


def _alone(name: str) -> dict[str, float]:
    from benchmarks.official import official_mask
    from erasure.saliency.mask import Mask

    before = _peak()
    generator = torch.Generator().manual_seed(0)
    scores = {str(i): torch.rand(WEIGHTS // SHAPES, generator=generator) ** 4 for i in range(SHAPES)}
    began = time.perf_counter()
    made = Mask.top(scores, 0.5).tensors if name == "ours" else official_mask(scores, 0.5)
    seconds = time.perf_counter() - began
    chosen = sum(int(tensor.sum()) for tensor in made.values())
    if chosen != WEIGHTS // 2:
        raise SystemExit(f"{name} selected {chosen} weights, expected {WEIGHTS // 2}")
    return {"seconds": seconds, "peak": _peak() - before}


def _peak() -> int:
    """Most bytes this process has held; the kernel's count for this program alone, not what started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(_alone(sys.argv[1])))
