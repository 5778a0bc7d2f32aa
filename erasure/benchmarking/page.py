"""The page of a benchmark: its tables, a plot of what they say, and for generators the same images from every row."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from erasure.benchmarking.plan import AGAIN, DIFFUSION, ORIGINAL, RETRAIN
from erasure.benchmarking.result import BenchmarkResult, Table, TableRow
from erasure.benchmarking.table import COLUMNS, LARGE_FIRST, columns_of, published, shown
from erasure.core import plots
from erasure.reports.page import Figure, rendered, titled

SLOT = 0.19  # inches of height for a name beside a plot


class Spot(NamedTuple):
    """A row in the plot: percent forgotten and kept, with their intervals."""

    forgotten: float
    forgotten_interval: Sequence[float] | None
    kept: float
    kept_interval: Sequence[float] | None


def as_page(result: BenchmarkResult, folder: Path) -> str:
    """The tables as one HTML page; a click on a column's name sorts by it, without a script.

    `folder` is where the image strips are that the rows name.
    """
    if result.family == DIFFUSION:
        title = f"Benchmark: erasing from {', '.join(result.models)}"
    else:
        title = f"Benchmark: unlearning from a {result.family} on {result.data}"
    return rendered(
        "benchmark.html",
        title=title,
        scenarios=[_page_scenario(scenario, folder) for scenario in result.scenarios],
        longest=max(len(columns_of(scenario)) for scenario in result.scenarios),
        notes=result.notes,
        facts=result.facts,
    )


def spots(scenario: Table) -> dict[str, Spot]:
    """The rows of a scenario that have both numbers, by name."""
    found = {}
    for row in scenario["rows"]:
        if {"forgotten", "kept"} <= set(row["scores"]):
            forgotten, kept = row["scores"]["forgotten"], row["scores"]["kept"]
            found[row["name"]] = Spot(forgotten["mean"], forgotten["interval"], kept["mean"], kept["interval"])
    return found


def front(points: Mapping[str, Spot]) -> list[str]:
    """The names on the Pareto front, by what they forget: no other row is as good on both and better on one."""
    best = [
        name
        for name, one in points.items()
        if not any(
            other.forgotten >= one.forgotten and other.kept >= one.kept and other[::2] != one[::2]
            for other in points.values()
        )
    ]
    return sorted(best, key=lambda name: points[name].forgotten)


def pareto(points: Mapping[str, Spot]) -> Any:
    """A figure of forgetting against keeping: each row a point with its intervals and its name, the front a line."""
    figure = plots.curve(
        {}, "forgotten: mean of what is no longer generated, %", "kept: mean of what is still right, %"
    )
    figure.set_size_inches(7.6, max(3.2, 0.8 + SLOT * len(points)))
    axes = figure.axes[0]
    best = front(points)
    axes.plot([points[n].forgotten for n in best], [points[n].kept for n in best], color=plots.MUTED, linestyle=":")
    order = sorted(points, key=lambda name: (points[name].kept, points[name].forgotten), reverse=True)
    for place, name in enumerate(order):
        one = points[name]
        colour = plots.INK if name == ORIGINAL else plots.ACCENT if name in best else plots.MUTED
        for interval, fixed, flat in (
            (one.forgotten_interval, one.kept, True),
            (one.kept_interval, one.forgotten, False),
        ):
            if interval is not None:
                ends = [max(0.0, interval[0]), min(100.0, interval[1])]
                pair = (ends, [fixed, fixed]) if flat else ([fixed, fixed], ends)
                axes.plot(*pair, color=colour, linewidth=0.8, alpha=0.5)
        axes.plot([one.forgotten], [one.kept], "D" if name == ORIGINAL else "o", color=colour, markersize=5)
        axes.annotate(
            name,
            (one.forgotten, one.kept),
            xytext=(1.06, 1 - (place + 0.5) / len(order)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.6},
        )
    return figure


def _page_scenario(scenario: Table, folder: Path) -> dict[str, Any]:
    columns = columns_of(scenario)
    lines: list[dict[str, Any]] = []
    for row in scenario["rows"]:
        mask = "" if row["mask"] in ("none", *row["name"].split()) else row["mask"]
        lines.append({"name": row["name"], "mask": mask, "values": _means(row, columns), "cells": _cells(row, columns)})
        if row["published"]:
            cells = [{"value": published(row, name), "interval": ""} for name in columns]
            values = {name: row["published"].get(name) for name in columns}
            lines.append({"name": f"{row['name']} (paper)", "mask": "", "values": values, "cells": cells})
    for name in columns:
        order = sorted(range(len(lines)), key=[_sorting(name, line["values"][name]) for line in lines].__getitem__)
        for rank, index in enumerate(order):
            lines[index].setdefault("ranks", []).append(rank)
    return {
        "title": scenario["title"],
        "forget": scenario["forget"],
        "header": [COLUMNS.get(name, name) for name in columns],
        "rows": lines,
        "figure": _figure(scenario),
        **_strips(scenario, folder),
    }


def _means(row: TableRow, columns: Sequence[str]) -> dict[str, float | None]:
    """The number of each column to sort by; Retrain has no gap to itself."""
    scores = row["scores"]
    means = {name: scores[name]["mean"] if name in scores else None for name in columns}
    return means | ({"avg_gap": 0.0} if row["name"] == RETRAIN and "avg_gap" in columns else {})


def _figure(scenario: Table) -> Figure | None:
    """AvgGap of every row, or what it forgets against what it keeps."""
    points = spots(scenario)
    if points:
        return titled(f"Forgetting against keeping, {scenario['title']}", pareto(points))
    gaps = {
        row["name"]: (row["scores"]["avg_gap"]["mean"], row["scores"]["avg_gap"]["interval"])
        for row in scenario["rows"]
        if "avg_gap" in row["scores"]
    }
    if not gaps:
        return None
    floor = gaps[AGAIN][0] if AGAIN in gaps else None
    return titled(f"AvgGap, {scenario['title']}", plots.intervals(gaps, "AvgGap %", reference=floor))


def _strips(scenario: Table, folder: Path) -> dict[str, Any]:
    """Each row's images as a data URI, and the prompts or classes that they show."""
    strips: list[dict[str, str]] = []
    asked: dict[str, list[str]] = {}
    for row in scenario["rows"]:
        strip = row.get("strip")
        if strip:
            image = "data:image/png;base64," + base64.b64encode((folder / strip).read_bytes()).decode()
            strips.append({"name": row["name"], "image": image})
            asked = asked or row.get("shown") or {}
    return {"strips": strips, "asked": asked}


def _cells(row: TableRow, columns: Sequence[str]) -> list[dict[str, str]]:
    found = []
    for name in columns:
        value, _, half = shown(row, name).partition(" ± ")
        found.append({"value": value, "interval": f"± {half}" if half else ""})
    return found


def _sorting(name: str, value: float | None) -> tuple[bool, float]:
    """Rows without a number stand last."""
    if value is None:
        return True, 0.0
    return False, -value if name in LARGE_FIRST else value
