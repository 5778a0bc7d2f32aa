"""The table of a benchmark: every row's means over seeds with intervals, its gap to Retrain, the paper's beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from erasure import plots
from erasure.benchmark_cells import Cell
from erasure.benchmark_plan import AGAIN, ORIGINAL, RETRAIN, Plan, Scenario
from erasure.metrics.avg_gap import average_gap
from erasure.report import aligned, rendered, titled
from erasure.statistics import over_seeds

COLUMNS = {
    "ua": "UA",
    "ra": "RA",
    "ta": "TA",
    "mia": "MIA",
    "avg_gap": "AvgGap",
    "seconds": "RTE s",
    "mask_seconds": "of it mask s",
    "speed": "Retrain / RTE",
    "loss_auc": "loss AUC",
    "u_lira": "U-LiRA",
    "klom_forget": "KLoM forget",
    "klom_test": "KLoM test",
}
DIGITS = {"loss_auc": 3, "klom_forget": 2, "klom_test": 2}  # of a number in the table; one where nothing is said
LARGE_FIRST = ("ua", "ra", "ta", "mia", "speed")


def tabled(plan: Plan, scenario: Scenario, cells: Sequence[Cell]) -> dict[str, Any]:
    """One scenario's rows as plain values: `scores` of each by name, with mean, interval and the value of each seed."""
    names = list(dict.fromkeys(cell.row for cell in cells))
    retrained = {cell.seed: cell for cell in cells if cell.row == RETRAIN}
    kinds = {row.name: row for row in plan.rows}
    rows = []
    for name in names:
        own = [cell for cell in cells if cell.row == name]
        row = kinds.get(name)
        rows.append(
            {
                "name": name,
                "method": row.method if row else name,
                "mask": next((cell.result["mask"] for cell in own if "mask" in cell.result), ""),
                "options": row.options_in(scenario) if row else {},
                "scores": _scores(own, retrained),
                "published": dict(scenario.published.get(name, {})),
                "failed": {str(cell.seed): cell.result["failed"] for cell in own if cell.model is None},
            }
        )
    return {"name": scenario.name, "title": scenario.title, "forget": scenario.forget, "rows": rows}


def _scores(cells: Sequence[Cell], retrained: Mapping[int, Cell]) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.model is None:
            continue
        values = cell.values
        reference = retrained[cell.seed]
        if cell.row != RETRAIN:
            values["avg_gap"] = average_gap(values, reference.values)
        if cell.row != ORIGINAL:
            values |= {key: float(cell.result[key]) for key in ("seconds", "mask_seconds")}
            values["speed"] = float(reference.result["seconds"]) / max(values["seconds"], 1e-9)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: score(values) for name, values in found.items()}


def score(values: list[float]) -> dict[str, Any]:
    """Mean over seeds, its 95 % Student-t interval (None for one seed), and the values."""
    mean, (low, high) = over_seeds(values)
    return {"mean": mean, "interval": [low, high] if math.isfinite(low) else None, "values": values}


def as_text(result: Mapping[str, Any]) -> str:
    """The tables for a terminal, one a scenario."""
    parts = []
    for scenario in result["scenarios"]:
        columns = _columns(scenario)
        lines = [["", "mask", *(COLUMNS[name] for name in columns)]]
        for row in scenario["rows"]:
            lines.append([row["name"], row["mask"], *(_shown(row, name) for name in columns)])
            if row["published"]:
                lines.append([f"  {row['name']} (paper)", "", *(_published(row, name) for name in columns)])
        parts.append(f"{scenario['title']}  (forget {scenario['forget']})\n\n{aligned(lines)}")
    parts += result["notes"]
    return "\n\n".join(parts)


def notes(plan: Plan, scenarios: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the table must know, and every cell that has no numbers."""
    tuned = f"; options were tuned on seed {', '.join(map(str, plan.tuned_on))}" if plan.tuned_on else ""
    found = [f"Everything was cut to {plan.steps} steps: it runs, and its numbers mean nothing."] if plan.steps else []
    found += [
        f"Means over seeds {', '.join(map(str, plan.seeds))} with 95 % Student-t intervals{tuned}.",
        f"AvgGap: mean of the gaps of UA, RA, TA and MIA to {RETRAIN} of the same seed. The row {AGAIN!r} is a second "
        "Retrain from other weights: its gap is the noise floor, below which rows do not differ.",
    ]
    for scenario in scenarios:
        for row in scenario["rows"]:
            for seed, reason in row["failed"].items():
                found.append(f"{scenario['title']}: {row['name']} has no numbers for seed {seed}: {reason}")
    return found


def as_page(result: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """The tables as one HTML page; a click on a column's name sorts by it, without a script."""
    return rendered(
        "benchmark.html",
        title=f"Benchmark: unlearning from a {result['family']} on {result['data']}",
        scenarios=[_page_scenario(scenario) for scenario in result["scenarios"]],
        longest=len(COLUMNS),
        notes=result["notes"],
        facts=facts,
    )


def _page_scenario(scenario: Mapping[str, Any]) -> dict[str, Any]:
    columns = _columns(scenario)
    lines: list[dict[str, Any]] = []
    for row in scenario["rows"]:
        means = {name: row["scores"].get(name, {}).get("mean") for name in columns}
        if row["name"] == RETRAIN:
            means["avg_gap"] = 0.0
        lines.append({"name": row["name"], "mask": row["mask"], "values": means, "cells": _cells(row, columns)})
        if row["published"]:
            cells = [{"value": _published(row, name), "interval": ""} for name in columns]
            values = {name: row["published"].get(name) for name in columns}
            lines.append({"name": f"{row['name']} (paper)", "mask": "", "values": values, "cells": cells})
    for name in columns:
        order = sorted(range(len(lines)), key=[_sorting(name, line["values"][name]) for line in lines].__getitem__)
        for rank, index in enumerate(order):
            lines[index].setdefault("ranks", []).append(rank)
    gaps = {
        row["name"]: (row["scores"]["avg_gap"]["mean"], row["scores"]["avg_gap"]["interval"])
        for row in scenario["rows"]
        if "avg_gap" in row["scores"]
    }
    floor = gaps[AGAIN][0] if AGAIN in gaps else None
    figure = (
        titled(f"AvgGap, {scenario['title']}", plots.intervals(gaps, "AvgGap %", reference=floor)) if gaps else None
    )
    return {
        "title": scenario["title"],
        "forget": scenario["forget"],
        "header": [COLUMNS[name] for name in columns],
        "rows": lines,
        "figure": figure,
    }


def _cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[dict[str, str]]:
    found = []
    for name in columns:
        value, _, half = _shown(row, name).partition(" ± ")
        found.append({"value": value, "interval": f"± {half}" if half else ""})
    return found


def _sorting(name: str, value: float | None) -> tuple[bool, float]:
    """Rows without a number stand last."""
    if value is None:
        return True, 0.0
    return False, -value if name in LARGE_FIRST else value


def _columns(scenario: Mapping[str, Any]) -> list[str]:
    measured = {name for row in scenario["rows"] for name in (*row["scores"], *row["published"])}
    return [name for name in COLUMNS if name in measured]


def _shown(row: Mapping[str, Any], name: str) -> str:
    found = row["scores"].get(name)
    if found is None:
        return "0" if name == "avg_gap" and row["name"] == RETRAIN else "-"
    digits = DIGITS.get(name, 2 if name == "avg_gap" else 1)
    text = f"{found['mean']:.{digits}f}"
    if found["interval"] is None:
        return text
    return f"{text} ± {found['interval'][1] - found['mean']:.{digits}f}"


def _published(row: Mapping[str, Any], name: str) -> str:
    value = row["published"].get(name)
    return "-" if value is None else f"{value:g}"
