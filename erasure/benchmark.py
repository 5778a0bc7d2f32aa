"""Benchmark: scenarios x methods x seeds under one plan, and one table of all of them beside Retrain.

A plan is a TOML file (see benchmark_plan.py): the data, how the originals are trained, what is forgotten, and the
methods with their tuned options. Every table has the original, Retrain, and Retrain once more as its noise floor.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erasure.benchmark_cells import Cell, Column
from erasure.benchmark_plan import RETRAIN, Plan, Scenario, read_plan
from erasure.benchmark_table import as_page, notes, tabled
from erasure.errors import OptionError
from erasure.many_models import FEWEST, klom, u_lira
from erasure.processes import device
from erasure.run import held, versions, write_json, write_text, writing
from erasure.statistics import mean_interval


def benchmark(
    given: str | Path,
    out: str | Path,
    *,
    methods: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    num_seeds: int | None = None,
    num_models: int | None = None,
    steps: int | None = None,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Carry out the plan `given` in the folder `out`; returns `scenarios` with their rows, `notes`, and what ran where.

    `methods` and `scenarios` are those of the plan that are wanted (default all). `num_models` adds U-LiRA and KLoM,
    from so many models of every row; `steps` shortens every training to show that it runs. The folder gets result.json
    and report.html. The same call on the same folder makes nothing twice.
    """
    if num_models is not None and num_models < FEWEST:
        raise OptionError(f"--models {num_models} must be at least {FEWEST}; 16 give numbers worth reading")
    plan = read_plan(given).only(methods, scenarios, num_seeds)
    if data_dir is not None:
        plan = replace(plan, data_dir=data_dir)
    plan = plan.shortened(steps) if steps is not None else plan
    return carried_out(plan, Path(out), num_models)


def carried_out(plan: Plan, folder: Path, num_models: int | None = None) -> dict[str, Any]:
    """The result of a plan, made or resumed in `folder`; raises RunError while another process is at work there."""
    began = time.perf_counter()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = held(folder / ".lock", folder)
    try:
        tables = []
        for scenario in plan.scenarios:
            cells = [cell for seed in plan.seeds for cell in Column(plan, folder, scenario, seed).cells(plan.rows)]
            tables.append(tabled(plan, scenario, cells))
        said = notes(plan, tables)
        if num_models is not None:
            said += _from_many(plan, folder, num_models, tables)
        facts = {
            "command": shlex.join(["erasure", *sys.argv[1:]]),
            "plan": ", ".join(f"{key} {value}" for key, value in plan.train.items()),
            "device": str(device()),
            "threads": str(torch.get_num_threads()),
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        result = {
            "family": plan.family,
            "data": plan.data,
            "seeds": list(plan.seeds),
            "tuned_on": list(plan.tuned_on),
            "scenarios": tables,
            "notes": said,
            "facts": facts,
            "plan": asdict(plan),
            "report": str(folder / "report.html"),
            "seconds": time.perf_counter() - began,
        }
        write_json(folder / "result.json", result)
        write_text(folder / "report.html", as_page(result, facts))
        return result
    finally:
        lock.release()


def _from_many(plan: Plan, folder: Path, num_models: int, tables: Sequence[dict[str, Any]]) -> list[str]:
    """Add U-LiRA and KLoM to the rows of `tables`; returns what must be said of them."""
    seeds = plan.only(num_seeds=num_models).seeds
    said = [
        f"U-LiRA (percent right, 50 is ideal) and KLoM (nats) are means over samples, from {num_models} models of each "
        f"row with seeds {seeds[0]} to {seeds[-1]} and one forget set."
    ]
    for scenario, table in zip(plan.scenarios, tables, strict=True):
        if scenario.forget.startswith("mislabelled"):
            said.append(f"{scenario.title}: no U-LiRA or KLoM, because every model has other wrong labels.")
            continue
        margins = _margins(plan, folder, scenario, seeds)
        for row in table["rows"]:
            own = margins.get(row["name"], {})
            if len(own.get("forget", ())) < num_models:
                said.append(
                    f"{scenario.title}: {row['name']} has no U-LiRA or KLoM, because some of its models failed."
                )
            elif row["name"] != RETRAIN:
                row["scores"] |= _compared(own, margins[RETRAIN])
    return said


def _margins(plan: Plan, folder: Path, scenario: Scenario, seeds: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
    """Margins (models, n) by row and part, of the models that there are."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for seed in seeds:
        column = Column(plan, folder, scenario, seed, seeds[0])
        finished: list[Cell] = [cell for cell in column.cells(plan.rows) if cell.model is not None]
        for cell in finished:
            for part, values in column.margins(cell).items():
                found.setdefault(cell.row, {}).setdefault(part, []).append(values)
    return {row: {part: np.stack(values) for part, values in parts.items()} for row, parts in found.items()}


def _compared(own: dict[str, np.ndarray], retrained: dict[str, np.ndarray]) -> dict[str, Any]:
    """`u_lira`, `klom_forget` and `klom_test` with their mean over samples, its interval and the 95th percentile."""
    samples = {
        "u_lira": u_lira(own["forget"], retrained["forget"]),
        "klom_forget": klom(own["forget"], retrained["forget"]),
        "klom_test": klom(own["test"], retrained["test"]),
    }
    return {
        name: {
            "mean": float(values.mean()),
            "interval": list(mean_interval(values)),
            "p95": float(np.quantile(values, 0.95)),
            "n": len(values),
        }
        for name, values in samples.items()
    }
