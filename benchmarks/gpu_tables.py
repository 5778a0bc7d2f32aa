"""The paper's tables on CIFAR-10: ResNet-18 forgets 10 % and 50 % of its samples, the DDPM each class in turn.

    python -m benchmarks.gpu --parts ddpm tables --minutes 60 --data-dir ../shared/data --out gpu

Both are plans of `erasure benchmark` (cifar10-resnet18.toml, cifar10-ddpm.toml). They run in a process of their own,
which is stopped when the minutes are over; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from erasure.benchmarking.plan_file import read_plan
from erasure.benchmarking.result import BenchmarkResult
from erasure.benchmarking.run import run_plan
from erasure.benchmarking.table import as_text
from erasure.core.config import build
from erasure.training.recipes import ClassifierRecipe


def run(root: Path, data_dir: str, toy: bool, deadline: float) -> dict[str, bool]:
    """Make both tables below `root` until `deadline`; returns which were finished."""
    command = [sys.executable, "-m", "benchmarks.gpu_tables", "--data-dir", data_dir, "--out", str(root)]
    left = max(1.0, deadline - time.monotonic())
    try:
        subprocess.run([*command, "--toy"] if toy else command, check=True, timeout=left)
    except subprocess.TimeoutExpired:
        print("the minutes are over: the same command goes on with the tables", file=sys.stderr)
    return {name: (root / name / "result.json").is_file() for name in ("resnet18", "ddpm-classes")}


def classification(root: Path, data_dir: str, toy: bool) -> BenchmarkResult:
    """ResNet-18, random 10 % and 50 %, with Retrain and the paper's rows; a small network for two steps as a toy."""
    plan = replace(read_plan("cifar10-resnet18"), data_dir=data_dir)
    if toy:
        small = build(ClassifierRecipe, "[train]", plan.train, {"arch": "resnet-digits", "batch_size": 16})
        train = {key: getattr(small, key) for key in plan.train}
        plan = replace(plan, train=train, limit=200, rows=plan.rows[:2], scenarios=plan.scenarios[:1], seeds=(0,))
        plan = plan.shortened(2)
    return run_plan(plan, root / "resnet18")


def generation(root: Path, data_dir: str, toy: bool) -> BenchmarkResult:
    """The trained DDPM, each class in turn; one class, two methods and few images as a toy."""
    plan = read_plan("cifar10-ddpm")
    evaluation = {**plan.evaluation, "classifier": str(root / "classifier")}
    plan = replace(plan, model=str(root / "ddpm"), data_dir=data_dir, evaluation=evaluation)
    if toy:
        few = {"num_images": 2, "num_inference_steps": 2}
        plan = replace(plan, evaluation={**evaluation, **few}, rows=plan.rows[:2], scenarios=plan.scenarios[:1])
        plan = plan.shortened(2)
    return run_plan(plan, root / "ddpm-classes")


def main() -> int:
    """Make the tables whose models there are; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tables", description=__doc__)
    parser.add_argument("--data-dir", required=True, help="where the CIFAR-10 archives lie")
    parser.add_argument("--out", required=True, help="folder of `python -m benchmarks.gpu`")
    parser.add_argument("--toy", action="store_true", help="small networks and few images: shows that it runs")
    arguments = parser.parse_args()
    root = Path(arguments.out)
    tables = [generation] if (root / "ddpm" / "model").is_dir() else []
    for table in (*tables, classification):
        print(as_text(table(root, arguments.data_dir, arguments.toy)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
