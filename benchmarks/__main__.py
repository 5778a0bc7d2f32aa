"""`python -m benchmarks [NAME ...]`: every measurement, as ratios of one run, printed and written to results.json.

What is not measured anew stays in the file, if it is of the same machine and as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks import audit, closed_forms, command_line, detectors, exact, mask, methods, stable_diffusion, step

Measured = Mapping[str, float | str]
ALL: dict[str, Callable[[], Measured]] = {
    "step": step.measure,
    "mask": mask.measure,
    "command line": command_line.measure,
    "sd step": stable_diffusion.step,
    "sd memory": stable_diffusion.memory,
    "method step": methods.measure,
    "closed forms": closed_forms.measure,
    "detectors": detectors.measure,
    "audit": audit.measure,
    "exact unlearning": exact.measure,
}


def main() -> int:
    """Run the chosen measurements; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which ({', '.join(ALL)}; default all)")
    parser.add_argument(
        "--out", default=str(Path(__file__).parent / "results" / "results.json"), help="where to write the numbers"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in ALL]
    if unknown:
        parser.error(f"unknown measurement {unknown[0]!r}: expected {', '.join(ALL)}")
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
    }
    print(results["machine"])
    out = Path(arguments.out)
    kept = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if all(kept.get(key) == value for key, value in results.items()):  # else it is of another machine
        results = {**kept, **results}
    for name in arguments.names or ALL:
        results[name] = show(name, ALL[name]())
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def show(name: str, found: Measured) -> Measured:
    """Print what was found, and return it."""
    print(f"\n{name}")
    for key, value in found.items():
        print(f"  {key:80}{value:>12}" if isinstance(value, str) else f"  {key:80}{value:12.4g}")
    return found


if __name__ == "__main__":
    sys.exit(main())
