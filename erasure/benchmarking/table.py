"""The table of a benchmark: each row's means over seeds with intervals, its gap to Retrain, and the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from erasure.benchmarking.cells import Cell
from erasure.benchmarking.diffusion_cells import cost
from erasure.benchmarking.plan import AGAIN, DIFFUSION, ORIGINAL, RETRAIN, BenchmarkPlan, Row, Scenario
from erasure.benchmarking.result import BenchmarkResult, SeedScore, Table, TableRow
from erasure.core.statistics import over_seeds
from erasure.evaluation.metrics.avg_gap import average_gap
from erasure.reports.page import aligned

COLUMNS = {
    "ua": "UA",
    "ua_unseen": "UA unseen",
    "forgotten": "forgotten",
    "ra": "RA",
    "ira": "IRA",
    "cra": "CRA",
    "composition": "pairs right",
    "kept": "kept",
    "fd_classifier": "FD (classifier)",
    "paired_distance": "paired distance",
    "ta": "TA",
    "mia": "MIA",
    "avg_gap": "AvgGap",
    "seconds": "RTE s",
    "mask_seconds": "of it mask s",
    "speed": "Retrain / RTE",
    "peak_memory": "peak MB",
    "changed": "weights changed %",
    "loss_auc": "loss AUC",
    "u_lira": "U-LiRA",
    "klom_forget": "KLoM forget",
    "klom_test": "KLoM test",
}
DIGITS = {
    "loss_auc": 3,
    "klom_forget": 2,
    "klom_test": 2,
    "fd_classifier": 2,
    "paired_distance": 2,
    "peak_memory": 0,
}  # of a number in the table; one where nothing is said
FORGOTTEN = ("ua", "ua_unseen")  # what a generator no longer generates
KEPT = ("ra", "ira", "cra", "composition")  # what a generator keeps
LARGE_FIRST = (*FORGOTTEN, "forgotten", *KEPT, "kept", "ta", "mia", "speed", "clip_score")


def tabled(plan: BenchmarkPlan, scenario: Scenario, cells: Sequence[Cell]) -> Table:
    """One scenario's rows as plain values: `scores` of each by name, with mean, interval and the value of each seed."""
    kinds = {row.name: row for row in plan.rows}
    retrained = {cell.seed: cell for cell in cells if cell.row == RETRAIN}
    rows = [
        _row(plan, scenario, kinds.get(name), [cell for cell in cells if cell.row == name], retrained)
        for name in dict.fromkeys(cell.row for cell in cells)
    ]
    took = sum(cell.result.get("took", 0.0) for cell in cells)
    return {"name": scenario.name, "title": scenario.title, "forget": scenario.what, "took": took, "rows": rows}


def _row(
    plan: BenchmarkPlan, scenario: Scenario, row: Row | None, cells: Sequence[Cell], retrained: Mapping[int, Cell]
) -> TableRow:
    """One row from its `cells`, one for each seed; `row` is the plan's, None for those that every table has."""
    name = cells[0].row
    found: TableRow = {
        "name": name,
        "method": row.method if row else name,
        "mask": next((cell.result["mask"] for cell in cells if "mask" in cell.result), ""),
        "options": row.options_in(scenario) if row else {},
        "scores": _scores(cells, retrained, plan.family),
        "published": dict(scenario.published.get(name, {})),
        "failed": {str(cell.seed): cell.result["failed"] for cell in cells if cell.model is None},
    }
    if plan.family == DIFFUSION:  # the picture is that of the first seed
        first = cells[0].result
        found |= {"strip": first.get("strip"), "shown": first.get("shown"), "n": _counts(cells)}
    return found


def _counts(cells: Sequence[Cell]) -> dict[str, int]:
    """Over how many labels each metric was taken, all seeds together; an image may have labels of several kinds."""
    found: dict[str, int] = {}
    for cell in cells:
        for name, score in cell.result.get("metrics", {}).items():
            found[name] = found.get(name, 0) + score["n"]
    return found


def _scores(cells: Sequence[Cell], retrained: Mapping[int, Cell], family: str) -> dict[str, SeedScore]:
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.model is None:
            continue
        for name, value in _numbers(cell, retrained.get(cell.seed), family).items():
            found.setdefault(name, []).append(value)
    return {name: score(values) for name, values in found.items()}


def _numbers(cell: Cell, retrained: Cell | None, family: str) -> dict[str, float]:
    """The columns of one cell by name; `retrained` is Retrain's cell of the same seed."""
    values = cell.values
    if retrained and cell.row != RETRAIN:
        values["avg_gap"] = average_gap(values, retrained.values)
    if cell.row == ORIGINAL:
        return values | (_means(values) if family == DIFFUSION else {})
    values |= {"seconds": float(cell.result["seconds"]), "mask_seconds": float(cell.result["mask_seconds"])}
    if retrained:
        values["speed"] = float(retrained.result["seconds"]) / max(values["seconds"], 1e-9)
    return values | ({**_means(values), **cost(cell.result)} if family == DIFFUSION else {})


def _means(values: Mapping[str, float]) -> dict[str, float]:
    """`forgotten` and `kept`: the means of the percentages of what is no longer generated, and of what still is."""
    shares = {
        "forgotten": [values[name] for name in FORGOTTEN if name in values],
        "kept": [values[name] for name in KEPT if name in values],
    }
    return {name: sum(found) / len(found) for name, found in shares.items() if found}


def score(values: list[float]) -> SeedScore:
    """Mean over seeds, its 95 % Student-t interval (None for one seed), and the values."""
    mean, (low, high) = over_seeds(values)
    return {"mean": mean, "interval": [low, high] if math.isfinite(low) else None, "values": values}


def as_text(result: BenchmarkResult) -> str:
    """The tables for a terminal, one for each scenario."""
    return "\n\n".join([*(scenario_text(scenario) for scenario in result.scenarios), *result.notes])


def scenario_text(scenario: Table) -> str:
    """One scenario's table for a terminal."""
    columns = columns_of(scenario)
    lines = [["", "mask", *(COLUMNS.get(name, name) for name in columns)]]
    for row in scenario["rows"]:
        lines.append([row["name"], row["mask"], *(shown(row, name) for name in columns)])
        if row["published"]:
            lines.append([f"  {row['name']} (paper)", "", *(published(row, name) for name in columns)])
    return f"{scenario['title']}  (forget {scenario['forget']})\n\n{aligned(lines)}"


def notes(plan: BenchmarkPlan, scenarios: Sequence[Table]) -> list[str]:
    """What a reader of the table must know, and why some cells have no numbers."""
    tuned = f"; options were tuned on seed {', '.join(map(str, plan.tuned_on))}" if plan.tuned_on else ""
    found = (
        [f"Everything was shortened to {plan.steps} steps to show that it runs: its numbers mean nothing."]
        if plan.steps
        else []
    )
    if len(plan.seeds) > 1:
        found.append(f"Means over seeds {', '.join(map(str, plan.seeds))} with 95 % Student-t intervals{tuned}.")
    else:
        found.append(f"One run of each row, seed {plan.seeds[0]}: no interval{tuned}.")
    if plan.family == DIFFUSION:
        found.append(_of_erasing(plan, scenarios))
    else:
        found.append(
            f"AvgGap: mean of the gaps of UA, RA, TA and MIA to {RETRAIN} of the same seed. The row {AGAIN!r} is a "
            "second Retrain from other weights: its gap is the noise floor, below which rows do not differ."
        )
    for scenario in scenarios:
        for row in scenario["rows"]:
            for reason, seeds in _reasons(row).items():
                many = "seeds" if len(seeds) > 1 else "seed"
                found.append(
                    f"{scenario['title']}: {row['name']} has no numbers for {many} {', '.join(seeds)}: {reason}"
                )
    return found


def _reasons(row: TableRow) -> dict[str, list[str]]:
    """The seeds without numbers, by the reason."""
    found: dict[str, list[str]] = {}
    for seed, reason in row["failed"].items():
        found.setdefault(reason, []).append(seed)
    return found


def _of_erasing(plan: BenchmarkPlan, scenarios: Sequence[Table]) -> str:
    """What the columns mean, and over how many labels of images."""
    counts: dict[str, set[int]] = {}
    for n in (row["n"] for scenario in scenarios for row in scenario["rows"][:1]):
        for name, count in n.items():
            counts.setdefault(COLUMNS.get(name, name), set()).add(count)
    images = ", ".join(f"{name} {' or '.join(map(str, sorted(found)))}" for name, found in counts.items())
    means = "".join(
        f"'{mean}' is the mean of {', '.join(found)}. "
        for mean, parts in (("forgotten", FORGOTTEN), ("kept", KEPT))
        if len(found := [COLUMNS[name] for name in parts if COLUMNS[name] in counts]) > 1
    )
    searched = "Options were searched on " + ", ".join(one.what for one in plan.tuning) + ". " if plan.tuning else ""
    return (
        f"{searched}Labels of images, all seeds together: {images}. {means}FD over few images is large for "
        "every row, the original too: compare rows of one table. Seconds include the mask; peak MB is how much "
        "memory grew while the method ran."
    )


def columns_of(scenario: Table) -> list[str]:
    """The columns with a number in any row, in the order of COLUMNS; other metrics come last."""
    measured = {name for row in scenario["rows"] for name in (*row["scores"], *row["published"])}
    for mean, parts in (("forgotten", FORGOTTEN), ("kept", KEPT)):
        if len(measured & set(parts)) == 1:  # the mean of one column is that column
            measured -= {mean}
    return [name for name in COLUMNS if name in measured] + sorted(measured - set(COLUMNS))


def shown(row: TableRow, name: str) -> str:
    """A row's mean in a column with half its interval, a dash where there is none."""
    found = row["scores"].get(name)
    if found is None:
        return "0" if name == "avg_gap" and row["name"] == RETRAIN else "-"
    digits = DIGITS.get(name, 2 if name == "avg_gap" else 1)
    text = f"{found['mean']:.{digits}f}"
    if found["interval"] is None:
        return text
    return f"{text} ± {found['interval'][1] - found['mean']:.{digits}f}"


def published(row: TableRow, name: str) -> str:
    """What a paper reports for a row in a column."""
    value = row["published"].get(name)
    return "-" if value is None else f"{value:g}"
