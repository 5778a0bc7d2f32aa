"""Fit: draw the plan of an exact service and train all its states."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erasure.core.run_dir import RunDir
from erasure.data import load_dataset, placed
from erasure.exact.base import ExactMethod
from erasure.exact.plan import ExactPlan, environment, ids_hash
from erasure.exact.predict import test_accuracy
from erasure.exact.service import Service, ids_of


def fit(
    name: str,
    method: ExactMethod,
    data: str,
    out: str | Path,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    likely: str | Collection[int] = (),
) -> dict[str, Any]:
    """Draw the plan of `method` and train all its states into the folder `out`; returns counts and test accuracy.

    `likely` are ids, as `forget` takes them, that will probably be forgotten: they come last, where a request costs
    least. A killed fit goes on with the first state that is missing; a finished one is returned as it was. Raises
    RunError when `out` holds anything else.
    """
    source = {
        "data": placed(data),
        "data_dir": str(Path(data_dir).resolve()) if data_dir else None,
        "image_size": image_size,
    }
    dataset = load_dataset(data, "train", data_dir, image_size)
    method.check(dataset)
    marked = ids_of(likely, len(dataset), f"the train split of {dataset.name}")
    settings = {"method": name, "options": asdict(method), **source, "data_hash": dataset.hash, "seed": seed}
    settings |= {"likely": ids_hash(marked), "environment": environment(method.threads)}
    with RunDir(out, "exact", settings) as run:
        if not (run.folder / "plan.json").is_file():
            ExactPlan.draw(name, method, dataset, source, seed, marked).write(run.folder)
        service = Service(run.folder, fitting=True)
        if service.pending:
            service.complete()
        if run.done:
            return run.result
        began = time.perf_counter()
        if not service.fitted:
            if not service.log.records("fit"):
                service.log.append("fit", plan=service.plan.hash, data=service.plan.data_hash)
            service.ensure((), dataset)
            service.commit((), service.plan.data_hash)
            service.sweep()
        result = {**_counts(service), "seconds": time.perf_counter() - began, "test_accuracy": test_accuracy(service)}
        run.finish(result)
        return result


def _counts(service: Service) -> dict[str, Any]:
    plan, deleted = service.plan, service.deleted
    return {
        "method": plan.method_name,
        "samples": sum(len(stage.ids) for stage in plan.last_stages(deleted)),
        "units": len(plan.units),
        "states": len(plan.stages(deleted)),
        "trained_samples": round(plan.samples(plan.stages(deleted)), 1),
        "log_head": service.log.head,
    }
