"""Keep what a benchmark found, for the README's tables: its result without folders and without every option.

erasure benchmark digits --out bench
python -m benchmarks.publish bench                        (writes benchmarks/results/digits.json; then `make readme`)

Of generators it also writes a picture: what every row of the first scenario draws from the same prompts and seeds.

erasure benchmark digits-sd --search --out search
python -m benchmarks.publish search --name digits-sd-search
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from erasure.benchmarking.result import BenchmarkResult, SearchResult, Table
from erasure.core import plots
from erasure.core.files import write_json
from erasure.data.images import read_image

RESULTS = Path(__file__).parent / "results"
KEPT = ("family", "data", "models", "seeds", "tuned_on", "notes", "seconds")
ROW = ("name", "method", "mask", "scores", "published", "failed")
OF_SEARCH = (*ROW, "chosen")


def main() -> int:
    """Write the results beside this file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.publish", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", help="the --out of a benchmark")
    parser.add_argument("--name", help="what the result is called (default: its data, or its model)")
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    if (folder / BenchmarkResult.FILE).is_file():
        result = BenchmarkResult.read(folder)
        name = arguments.name or result.data or Path(result.models[0]).name
        kept = published(result)
        picture(result.scenarios[0], folder, RESULTS / f"{name}.jpg")
    elif not (folder / SearchResult.FILE).is_file():
        parser.error(f"{folder} holds neither result.json nor search.json: give the --out of a benchmark")
    elif not arguments.name:
        parser.error("a search needs --name, such as digits-sd-search")
    else:
        name, kept = arguments.name, published_search(SearchResult.read(folder))
    path = RESULTS / f"{name}.json"
    write_json(path, kept)
    print(path.relative_to(RESULTS.parent.parent))
    return 0


def published(result: BenchmarkResult) -> dict[str, Any]:
    """The parts of a result that its tables are made of, and how many threads it had."""
    about = {key: getattr(result, key) for key in KEPT}
    scenarios = _scenarios(result.scenarios, ROW)
    return dict(rounded({**about, "threads": result.facts["threads"], "scenarios": scenarios}))


def published_search(result: SearchResult) -> dict[str, Any]:
    """The candidates of a search with their numbers, which were chosen, and by what rule."""
    about = {key: getattr(result, key) for key in ("family", "seeds", "rule", "seconds")}
    scenarios = _scenarios(result.scenarios, OF_SEARCH)
    for row in (row for scenario in scenarios for row in scenario["rows"]):
        row["scores"] = {
            name: {"mean": score["mean"], "interval": score["interval"]} for name, score in row["scores"].items()
        }
    return dict(rounded({**about, "scenarios": scenarios}))


def picture(table: Table, folder: Path, path: Path) -> None:
    """Write the strips of a scenario's rows, each beside its name; nothing where there are none."""
    named = {row["name"]: row.get("strip") for row in table["rows"]}
    strips = {name: read_image(folder / strip, strip) for name, strip in named.items() if strip}
    if strips:
        plots.write_jpeg(plots.pictures(strips), path)


def _scenarios(tables: list[Table], of_row: tuple[str, ...]) -> list[dict[str, Any]]:
    """The scenarios with these entries of each row; a mask that is a file is called by its name."""
    kept: list[dict[str, Any]] = [
        {**table, "rows": [{key: dict(row)[key] for key in of_row} for row in table["rows"]]} for table in tables
    ]
    for row in (row for scenario in kept for row in scenario["rows"]):
        row["mask"] = Path(row["mask"]).name.removesuffix(".safetensors")
    return kept


def rounded(value: Any) -> Any:
    """`value` with every number that is not whole to six digits, more than any table shows."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
