"""`python -m benchmarks [NAME ...]`: every measurement, as ratios of one run, printed and written to results.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import torch

from benchmarks import command_line, mask, step

ALL = {"step": step.measure, "mask": mask.measure, "command line": command_line.measure}


def main() -> int:
    """Run the chosen measurements; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which ({', '.join(ALL)}; default all)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results.json"), help="where to write the numbers")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in ALL]
    if unknown:
        parser.error(f"unknown measurement {unknown[0]!r}: expected {', '.join(ALL)}")
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
    }
    print(results["machine"])
    for name in arguments.names or ALL:
        found = ALL[name]()
        results[name] = found
        print(f"\n{name}")
        for key, value in found.items():
            print(f"  {key:64}{value:12.4g}")
    Path(arguments.out).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
