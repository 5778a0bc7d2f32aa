"""Keep what a benchmark found, for the README's tables: its result without folders and without every option.

erasure benchmark digits --out bench
python -m benchmarks.publish bench                        (writes benchmarks/digits.json; then `make readme`)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from erasure.run import read_json, write_json

HERE = Path(__file__).parent
KEPT = ("family", "data", "models", "seeds", "tuned_on", "notes", "seconds")
ROW = ("name", "method", "mask", "scores", "published", "failed")


def main() -> int:
    """Write the results beside this file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.publish", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", help="the --out of a benchmark")
    parser.add_argument("--name", help="what the result is called (default: its data, or its model)")
    arguments = parser.parse_args()
    result = read_json(Path(arguments.folder) / "result.json")
    path = HERE / f"{arguments.name or result['data'] or Path(result['models'][0]).name}.json"
    write_json(path, published(result))
    print(path.relative_to(HERE.parent))
    return 0


def published(result: dict[str, Any]) -> dict[str, Any]:
    """The parts of a result that its tables are made of, and how many threads it had."""
    scenarios = [
        {**scenario, "rows": [{key: row[key] for key in ROW} for row in scenario["rows"]]}
        for scenario in result["scenarios"]
    ]
    about = {key: result[key] for key in KEPT if key in result}
    return rounded({**about, "threads": result["facts"]["threads"], "scenarios": scenarios})


def rounded(value: Any) -> Any:
    """`value` with every number that is not whole to six digits, more than any table shows."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
