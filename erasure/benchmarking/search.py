"""Search: choose the options of each row of a benchmark by one rule, on scenarios and seeds that are not reported.

The candidates are those of [methods.ROW.search]. A row with several masks is searched with its first one, and all masks
get the chosen options. Generators are tuned on the scenarios of [tuning], classifiers on the plan's own if it has no
[tuning], both with the seeds `tuned_on`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from erasure.benchmarking.plan import CLASSIFIER, BenchmarkPlan, Row, Scenario
from erasure.benchmarking.result import SearchResult, Table, TableRow
from erasure.benchmarking.run import planned, tables_of
from erasure.benchmarking.table import scenario_text
from erasure.core.distributed import is_main
from erasure.core.errors import OptionError

FORGOTTEN = 95.0
RULES = {
    "classifier": "the smallest AvgGap",
    "diffusion": f"of those with UA of {FORGOTTEN:.0f} % the one with the largest sum of what is kept (mean of what is "
    "still right) and, where there is one, UA unseen, ties by the smallest paired distance; where none forgets as much "
    "the largest sum of what is forgotten and what is kept",
}


def search(
    given: str | Path,
    out: str | Path,
    *,
    methods: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    steps: int | None = None,
    data_dir: str | None = None,
) -> SearchResult:
    """Try every candidate of the plan `given` in the folder `out`, which gets search.json.

    The result's `toml` are the chosen options as lines for the plan. The same call on the same folder computes nothing
    twice.

    Args:
        given: a TOML file, or the name of a plan that ships.
        out: the folder.
        methods: only these rows of the plan (default all).
        scenarios: only these of the scenarios that are tuned on (default all).
        steps: shorten every training to so many steps, to show that it runs.
        data_dir: where the plan's data lies on disk.

    Raises:
        OptionError: the plan has nothing to search, or no seeds for it.
    """
    began = time.perf_counter()
    plan = planned(given, methods, steps=steps, data_dir=data_dir)
    rows = list({row.base or row.name: row for row in reversed(plan.rows) if row.search}.values())[::-1]
    if not rows:
        raise OptionError(f"{given} has no candidates for these rows: write [methods.ROW.search] with lists of values")
    if not plan.tuned_on:
        raise OptionError(f"{given} names no seeds to search on, such as tuned_on = [7]")
    tuning = plan.tuning or (plan.scenarios if plan.family == CLASSIFIER else ())
    if not tuning:
        raise OptionError(f"{given} names nothing to search on: write [tuning.NAME] with another concept")
    tuning = replace(plan, scenarios=tuning).only(scenarios=scenarios).scenarios
    tables, lines = [], []
    for scenario in tuning:
        own = next((one for one in plan.scenarios if one.name == scenario.name), None)
        table = _searched(plan, Path(out) / "search", scenario, rows, own or Scenario(scenario.name))
        tables.append(table)
        lines += _lines(table, own)
    result = SearchResult(
        family=plan.family,
        seeds=list(plan.tuned_on),
        rule=RULES[plan.family],
        scenarios=tables,
        toml="\n\n".join(lines),
        seconds=max(time.perf_counter() - began, sum(table["took"] for table in tables)),
    )
    if is_main():
        result.write(Path(out))
    return result


def as_text(result: SearchResult) -> str:
    """Every candidate with its numbers, the chosen ones marked, and the lines for the plan."""
    parts = [scenario_text({**table, "rows": [_marked(row) for row in table["rows"]]}) for table in result.scenarios]
    failed = [
        f"{table['title']}: {row['name']} has no numbers: {next(iter(row['failed'].values()))}"
        for table in result.scenarios
        for row in table["rows"]
        if row["failed"]
    ]
    return "\n\n".join([*parts, *failed, f"* chosen: {result.rule}", result.toml])


def _marked(row: TableRow) -> TableRow:
    """The row with a star before its name where it was chosen."""
    return {**row, "name": f"* {row['name']}"} if row.get("chosen") else row


def chosen(family: str, candidates: Sequence[TableRow]) -> TableRow | None:
    """The candidate that the rule of RULES takes; None when none has the numbers that the rule needs."""

    def mean(row: TableRow, name: str) -> float:
        return float(row["scores"][name]["mean"])

    needed = {"avg_gap"} if family == CLASSIFIER else {"ua", "kept", "paired_distance"}
    whole = [row for row in candidates if needed <= set(row["scores"]) and not row["failed"]]
    if not whole:
        return None
    if family == CLASSIFIER:
        return min(whole, key=lambda row: mean(row, "avg_gap"))
    forgot = [row for row in whole if mean(row, "ua") >= FORGOTTEN]
    if forgot:
        return max(
            forgot,
            key=lambda row: (
                mean(row, "kept") + (mean(row, "ua_unseen") if "ua_unseen" in row["scores"] else 0.0),
                -mean(row, "paired_distance"),
            ),
        )
    return max(whole, key=lambda row: mean(row, "forgotten") + mean(row, "kept"))


def _searched(plan: BenchmarkPlan, folder: Path, scenario: Scenario, rows: Sequence[Row], reported: Scenario) -> Table:
    """The table of all candidates on one scenario, each row with `row`, `candidate` and whether it was `chosen`."""
    candidates = {f"{row.slug}: {name}": (row, values) for row in rows for name, values in row.search.items()}
    tried = tuple(
        replace(row, name=name, base=row.base or row.name, options={**row.options_in(reported), **values})
        for name, (row, values) in candidates.items()
    )
    bare = replace(scenario, methods={}, published={})
    table = tables_of(replace(plan, scenarios=(bare,), rows=tried, seeds=plan.tuned_on), folder)[0]
    for row in table["rows"]:
        known = candidates.get(row["name"])
        if known:
            row["row"], row["candidate"] = known[0].base or known[0].name, dict(known[1])
        row["chosen"] = False
    for own in rows:
        best = chosen(plan.family, [row for row in table["rows"] if row.get("row") == (own.base or own.name)])
        if best is not None:
            best["chosen"] = True
    return table


def _lines(table: Table, reported: Scenario | None) -> list[str]:
    """The chosen options: those of the reported scenario of the same name, or of the whole plan."""
    place = f"scenarios.{reported.name}.methods" if reported else "methods"
    found = []
    for row in table["rows"]:
        if row["chosen"]:
            name = as_toml(row["row"]) if "." in row["row"] else row["row"]
            values = [f"{key} = {as_toml(value)}" for key, value in row["candidate"].items()]
            found.append("\n".join([f"[{place}.{name}]", *values]))
    return found


def as_toml(value: Any) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {as_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str) else repr(value)
