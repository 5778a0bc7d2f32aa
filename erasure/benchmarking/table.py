"""The table of a benchmark: every row's means over seeds with intervals, its gap to Retrain, the paper's beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from erasure.benchmarking.cells import Cell
from erasure.benchmarking.diffusion_cells import cost
from erasure.benchmarking.plan import AGAIN, DIFFUSION, ORIGINAL, RETRAIN, BenchmarkPlan, Scenario
from erasure.core.statistics import over_seeds
from erasure.evaluation.metrics.avg_gap import average_gap
from erasure.reports.erase_report import aligned

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
FORGOTTEN = ("ua", "ua_unseen")  # what a generator no longer draws
KEPT = ("ra", "ira", "cra", "composition")  # what a generator keeps
LARGE_FIRST = (*FORGOTTEN, "forgotten", *KEPT, "kept", "ta", "mia", "speed", "clip_score")


def tabled(plan: BenchmarkPlan, scenario: Scenario, cells: Sequence[Cell]) -> dict[str, Any]:
    """One scenario's rows as plain values: `scores` of each by name, with mean, interval and the value of each seed."""
    names = list(dict.fromkeys(cell.row for cell in cells))
    retrained = {cell.seed: cell for cell in cells if cell.row == RETRAIN}
    kinds = {row.name: row for row in plan.rows}
    rows = []
    for name in names:
        own = [cell for cell in cells if cell.row == name]
        row = kinds.get(name)
        extra = _strip(own) if plan.family == DIFFUSION else {}
        rows.append(
            {
                "name": name,
                "method": row.method if row else name,
                "mask": next((cell.result["mask"] for cell in own if "mask" in cell.result), ""),
                "options": row.options_in(scenario) if row else {},
                "scores": _scores(own, retrained, plan.family),
                "published": dict(scenario.published.get(name, {})),
                "failed": {str(cell.seed): cell.result["failed"] for cell in own if cell.model is None},
                **extra,
            }
        )
    about = {"name": scenario.name, "title": scenario.title, "forget": scenario.what}
    return {**about, "took": sum(cell.result.get("took", 0.0) for cell in cells), "rows": rows}


def _strip(cells: Sequence[Cell]) -> dict[str, Any]:
    """The picture of a row's first seed, and the names of what it shows."""
    found = cells[0].result
    return {"strip": found.get("strip"), "shown": found.get("shown"), "n": _counts(cells)}


def _counts(cells: Sequence[Cell]) -> dict[str, int]:
    """Over how many judgements each metric was taken, all seeds together; an image may be judged on several things."""
    found: dict[str, int] = {}
    for cell in cells:
        for name, score in cell.result.get("metrics", {}).items():
            found[name] = found.get(name, 0) + score["n"]
    return found


def _scores(cells: Sequence[Cell], retrained: Mapping[int, Cell], family: str) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.model is None:
            continue
        values = cell.values
        reference = retrained.get(cell.seed)
        if reference and cell.row != RETRAIN:
            values["avg_gap"] = average_gap(values, reference.values)
        if cell.row != ORIGINAL:
            values |= {key: float(cell.result[key]) for key in ("seconds", "mask_seconds")}
        if reference and cell.row != ORIGINAL:
            values["speed"] = float(reference.result["seconds"]) / max(values["seconds"], 1e-9)
        if family == DIFFUSION:
            values |= _means(values) | (cost(cell.result) if cell.row != ORIGINAL else {})
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: score(values) for name, values in found.items()}


def _means(values: Mapping[str, float]) -> dict[str, float]:
    """`forgotten` and `kept`: the means of the shares that say what a generator no longer draws, and still does."""
    shares = {
        "forgotten": [values[name] for name in FORGOTTEN if name in values],
        "kept": [values[name] for name in KEPT if name in values],
    }
    return {name: sum(found) / len(found) for name, found in shares.items() if found}


def score(values: list[float]) -> dict[str, Any]:
    """Mean over seeds, its 95 % Student-t interval (None for one seed), and the values."""
    mean, (low, high) = over_seeds(values)
    return {"mean": mean, "interval": [low, high] if math.isfinite(low) else None, "values": values}


def as_text(result: Mapping[str, Any]) -> str:
    """The tables for a terminal, one a scenario."""
    return "\n\n".join([*(scenario_text(scenario) for scenario in result["scenarios"]), *result["notes"]])


def scenario_text(scenario: Mapping[str, Any]) -> str:
    """One scenario's table for a terminal."""
    columns = columns_of(scenario)
    lines = [["", "mask", *(COLUMNS.get(name, name) for name in columns)]]
    for row in scenario["rows"]:
        lines.append([row["name"], row["mask"], *(shown(row, name) for name in columns)])
        if row["published"]:
            lines.append([f"  {row['name']} (paper)", "", *(published(row, name) for name in columns)])
    return f"{scenario['title']}  (forget {scenario['forget']})\n\n{aligned(lines)}"


def notes(plan: BenchmarkPlan, scenarios: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the table must know, and every cell that has no numbers."""
    tuned = f"; options were tuned on seed {', '.join(map(str, plan.tuned_on))}" if plan.tuned_on else ""
    found = [f"Everything was cut to {plan.steps} steps: it runs, and its numbers mean nothing."] if plan.steps else []
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


def _reasons(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """The seeds without numbers, by why there are none."""
    found: dict[str, list[str]] = {}
    for seed, reason in row["failed"].items():
        found.setdefault(reason, []).append(seed)
    return found


def _of_erasing(plan: BenchmarkPlan, scenarios: Sequence[Mapping[str, Any]]) -> str:
    """What the columns are, and over how many judgements."""
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
        f"{searched}Judgements of images, all seeds together: {images}. {means}FD over few images is large for "
        "every row, the original too: compare rows of one table. Seconds include the mask; peak MB is how far "
        "memory rose while the method ran."
    )


def columns_of(scenario: Mapping[str, Any]) -> list[str]:
    """The columns that have a number in any row, in their order; other metrics come last."""
    measured = {name for row in scenario["rows"] for name in (*row["scores"], *row["published"])}
    for mean, parts in (("forgotten", FORGOTTEN), ("kept", KEPT)):
        if len(measured & set(parts)) == 1:  # the mean of one says nothing new
            measured -= {mean}
    return [name for name in COLUMNS if name in measured] + sorted(measured - set(COLUMNS))


def shown(row: Mapping[str, Any], name: str) -> str:
    """A row's mean in a column with half its interval, a dash where there is none."""
    found = row["scores"].get(name)
    if found is None:
        return "0" if name == "avg_gap" and row["name"] == RETRAIN else "-"
    digits = DIGITS.get(name, 2 if name == "avg_gap" else 1)
    text = f"{found['mean']:.{digits}f}"
    if found["interval"] is None:
        return text
    return f"{text} ± {found['interval'][1] - found['mean']:.{digits}f}"


def published(row: Mapping[str, Any], name: str) -> str:
    """What a paper reports for a row in a column."""
    value = row["published"].get(name)
    return "-" if value is None else f"{value:g}"
