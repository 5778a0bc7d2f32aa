"""Compare finished runs in one table, and on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erasure.core import plots
from erasure.core.errors import RunError
from erasure.core.files import write_text
from erasure.core.records import Facts, Record, stored
from erasure.core.run_dir import RunRecord, read_record
from erasure.reports.page import COLUMNS, Figure, rendered, table, titled


@dataclass(frozen=True)
class RunComparison(Record):
    """Rows of runs with their metrics, originals first; `html` is the page, where one was written."""

    rows: tuple[Facts, ...]
    original: Facts | None
    html: str | None = stored(optional=True)


def compare_runs(runs: Sequence[str], html: str | Path | None = None) -> RunComparison:
    """Put finished erasures into one table, their originals first; `html` also writes a page.

    Originals with the same metrics appear once. Raises RunError for a folder that is no finished erasure.
    """
    documents = {run: _finished(run) for run in runs}
    rows: list[Facts] = []
    originals: dict[str, Facts] = {}
    for run, document in documents.items():
        result, settings = document["result"], document["settings"]
        name = f"{settings['method']} ({Path(run).name})"
        rows.append({"name": name, "seed": settings["seed"], **result})
        if "original" in result:
            key = f"{settings['model_hash']} {result['original']['metrics']}"
            originals[key] = {"name": "original", "mask": "", "forget": result["forget"], **result["original"]}
    every = [*originals.values(), *rows]
    if html is not None:
        page = rendered(
            title="Comparison of runs", table=table(every), figures=_figures(every), classes=[], notes=[], facts={}
        )
        write_text(Path(html), page)
    return RunComparison(tuple(every), next(iter(originals.values()), None), str(html) if html is not None else None)


def _finished(run: str) -> RunRecord:
    document = read_record(Path(run) / "run.json")
    if document["verb"] != "erase" or document["status"] != "done":
        raise RunError(f"{run} is not a finished erasure: finish it with its own command first")
    return document


def _figures(rows: Sequence[Facts]) -> list[Figure]:
    """One plot for each metric: every row's value with its interval, and no average that could hide a bad number."""
    figures = []
    for name, title in COLUMNS.items():
        scores = {row["name"]: row["metrics"][name] for row in rows if name in row.get("metrics", {})}
        if scores:
            points = {key: (score["value"], score["interval"]) for key, score in scores.items()}
            unit = next(iter(scores.values()))["unit"]
            figures.append(titled(title, plots.intervals(points, f"{title} {unit}".strip())))
    return figures
