"""Benchmark: scenarios x methods x seeds under one plan, and one table of all of them beside the original.

A plan is a TOML file (see plan_file.py): what is forgotten, from which model, and the methods with their tuned
options. A table of classifiers, whose originals are trained, also has Retrain, and Retrain again as its noise floor.

Diffusion models: the same command may run several times at once on one folder. Each process takes a scenario and seed
that is free, waits in the end for those of the others, and all of them write the same tables.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from erasure.benchmarking.cells import Cell, Cells, Column
from erasure.benchmarking.diffusion_cells import Erasures, evaluation_of
from erasure.benchmarking.page import as_page
from erasure.benchmarking.plan import CLASSIFIER, DIFFUSION, RETRAIN, BenchmarkPlan, Scenario
from erasure.benchmarking.plan_file import read_plan
from erasure.benchmarking.result import BenchmarkResult, SeedScore, Table
from erasure.benchmarking.table import notes, tabled
from erasure.core.distributed import agreed, device, is_main
from erasure.core.errors import OptionError, RunError
from erasure.core.files import held, write_text, writing
from erasure.core.logging import log_user
from erasure.core.records import plain
from erasure.core.run_dir import versions
from erasure.core.statistics import mean_interval
from erasure.evaluation.membership_inference import FEWEST, klom, u_lira


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
    keep_models: bool = False,
) -> BenchmarkResult:
    """Run the plan `given` in the folder `out`, which gets result.json and report.html.

    The same call on the same folder computes nothing twice.

    Args:
        given: a TOML file, or the name of a plan that ships.
        out: the folder.
        methods: only these rows of the plan (default all).
        scenarios: only these scenarios (default all).
        num_seeds: how many seeds (default: those of the plan).
        num_models: for classifiers, also U-LiRA and KLoM, from so many models of every row.
        steps: shorten every training to so many steps, to show that it runs.
        data_dir: where the plan's data lies on disk.
        keep_models: keep the weights and images of diffusion models in their folders.

    Raises:
        OptionError: the plan or an option is wrong.
        RunError: another process is at work in the folder on classifiers.
    """
    if num_models is not None and num_models < FEWEST:
        raise OptionError(f"--models {num_models} must be at least {FEWEST}; 16 give numbers worth reading")
    plan = planned(given, methods, scenarios, num_seeds, steps, data_dir)
    if num_models is not None and plan.family != CLASSIFIER:
        raise OptionError("--models compares with retrained models: it is for plans of classifiers")
    return run_plan(plan, Path(out), num_models, keep_models)


def planned(
    given: str | Path,
    methods: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    num_seeds: int | None = None,
    steps: int | None = None,
    data_dir: str | None = None,
) -> BenchmarkPlan:
    """The plan `given` with the options of a call, checked as far as possible before anything is computed."""
    plan = read_plan(given).only(methods, scenarios, num_seeds)
    if data_dir is not None:
        plan = replace(plan, data_dir=data_dir)
    if plan.family == DIFFUSION:
        evaluation_of(plan)
    return plan.shortened(steps) if steps is not None else plan


def run_plan(
    plan: BenchmarkPlan, folder: Path, num_models: int | None = None, keep_models: bool = False
) -> BenchmarkResult:
    """Run a plan in `folder`, or resume it there.

    Raises RunError while another process is at work there on classifiers.
    """
    began = time.perf_counter()
    if plan.family == CLASSIFIER:
        with _locked(folder):
            tables = tables_of(plan, folder, keep_models)
            said = notes(plan, tables)
            said += _from_many(plan, folder, num_models, tables) if num_models is not None else []
    else:
        tables = tables_of(plan, folder, keep_models)
        said = notes(plan, tables)
    facts = _facts(plan)
    result = BenchmarkResult(
        family=plan.family,
        data=plan.data,
        models=list(dict.fromkeys(scenario.model or plan.model for scenario in plan.scenarios)),
        seeds=list(plan.seeds),
        tuned_on=list(plan.tuned_on),
        scenarios=tables,
        notes=said,
        facts=facts,
        plan=plain(asdict(plan)),
        report=str(folder / "report.html"),
        seconds=max(time.perf_counter() - began, sum(table["took"] for table in tables)),
    )
    if is_main():
        result.write(folder)
        write_text(folder / "report.html", as_page(result, folder))
    return result


def tables_of(plan: BenchmarkPlan, folder: Path, keep_models: bool = False) -> list[Table]:
    """The table of each scenario, its cells computed or found in `folder`."""
    places = [(scenario, seed) for scenario in plan.scenarios for seed in plan.seeds]
    done: dict[tuple[str, int], list[Cell]] = {}
    for wait in (False, True):  # first those that are free, then those of other processes
        for scenario, seed in places:
            key = (scenario.name, seed)
            if key in done:
                continue
            column = _column(plan, folder, scenario, seed, keep_models)
            if plan.family == CLASSIFIER:
                done[key] = column.cells(plan.rows)
                continue
            with _taken(column.folder, wait) as ours:
                if ours:
                    done[key] = column.cells(plan.rows)
                else:
                    log_user(f"{scenario.name}, seed {seed}: another process works on it")
    return [
        tabled(plan, scenario, [cell for seed in plan.seeds for cell in done[scenario.name, seed]])
        for scenario in plan.scenarios
    ]


def _column(plan: BenchmarkPlan, folder: Path, scenario: Scenario, seed: int, keep_models: bool) -> Cells:
    if plan.family == CLASSIFIER:
        return Column(plan, folder, scenario, seed)
    return Erasures(plan, folder, scenario, seed, keep_models)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this command alone; raises RunError while another process has it."""
    with _taken(folder, wait=False) as ours:
        if not ours:
            raise RunError(f"{folder} is in use by another process: wait for it or give another --out")
        yield


@contextmanager
def _taken(folder: Path, wait: bool) -> Iterator[bool]:
    """Try to hold the folder while the block lasts, yields whether that worked; `wait` until it does."""
    lock = None
    if is_main():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(RunError):
                lock = held(folder / ".lock", folder, wait=wait)
    try:
        yield agreed(lock is not None)
    finally:
        if lock is not None:
            lock.release()


def _facts(plan: BenchmarkPlan) -> dict[str, str]:
    how = {**plan.train, **plan.evaluation, **plan.training_images}
    return {
        "command": shlex.join(["erasure", *sys.argv[1:]]),
        "plan": ", ".join(f"{key} {value}" for key, value in how.items()),
        "device": str(device()),
        "threads": str(torch.get_num_threads()),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def _from_many(plan: BenchmarkPlan, folder: Path, num_models: int, tables: Sequence[Table]) -> list[str]:
    """Add U-LiRA and KLoM to the rows of `tables`; returns the notes about them."""
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


def _margins(
    plan: BenchmarkPlan, folder: Path, scenario: Scenario, seeds: Sequence[int]
) -> dict[str, dict[str, np.ndarray]]:
    """Margins (models, n) by row and part, of all models that could be made."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for seed in seeds:
        column = Column(plan, folder, scenario, seed, seeds[0])
        finished: list[Cell] = [cell for cell in column.cells(plan.rows) if cell.model is not None]
        for cell in finished:
            for part, values in column.margins(cell).items():
                found.setdefault(cell.row, {}).setdefault(part, []).append(values)
    return {row: {part: np.stack(values) for part, values in parts.items()} for row, parts in found.items()}


def _compared(own: dict[str, np.ndarray], retrained: dict[str, np.ndarray]) -> dict[str, SeedScore]:
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
