"""How long `erasure --help` takes, against a Python that does nothing; runs alternate, medians are compared."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 25


def measure() -> dict[str, float]:
    """Seconds and the ratio."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "erasure --help": [sys.executable, "-m", "erasure", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{f"{name}, seconds": value for name, value in median.items()},
        "erasure --help / python -c pass (goal: at most 5)": median["erasure --help"] / median["python -c pass"],
    }
