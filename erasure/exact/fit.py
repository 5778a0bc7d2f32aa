"""Fit: draw the plan of an exact service and train all its states."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from erasure.core.run_dir import RunDir
from erasure.data import placed
from erasure.exact.base import ExactMethod
from erasure.exact.hash_log import FitEvent
from erasure.exact.plan import DataSpec, ExactPlan, environment, ids_hash
from erasure.exact.predict import test_accuracy
from erasure.exact.results import FitResult
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
) -> FitResult:
    """Draw the plan of `method` and train all its states into the folder `out`.

    A killed fit continues with the first missing state; a finished one returns its result.

    Args:
        name: Name of the exact method, for the record.
        method: The method with its settings.
        data: Name or place of the data set.
        out: Folder of the service.
        data_dir: Where a named data set lies on disk.
        image_size: Size in pixels that images are brought to.
        seed: Seed of all random numbers.
        likely: Ids, as `forget` accepts them, that will probably be forgotten. They come last, where a request is
            cheapest.

    Raises:
        RunError: `out` holds something else.
        OptionError: A setting is out of its range, or an id of `likely` does not exist.
    """
    source = DataSpec(placed(data) or data, str(Path(data_dir).resolve()) if data_dir else None, image_size)
    dataset = source.load()
    method.check(dataset)
    marked = ids_of(likely, len(dataset), f"the train split of {dataset.name}")
    settings = {"method": name, "options": asdict(method), **source.to_dict(), "data_hash": dataset.hash, "seed": seed}
    settings |= {"likely": ids_hash(marked), "environment": environment(method.threads)}
    with RunDir(out, "exact", settings) as run:
        if not (run.folder / "plan.json").is_file():
            ExactPlan.draw(name, method, dataset, source, seed, marked).write(run.folder)
        service = Service(run.folder, fitting=True)
        if service.pending:
            service.complete()
        if run.done:
            return FitResult.from_dict({"out": str(out), **run.result}, f"{out}/run.json is damaged")
        began = time.perf_counter()
        if not service.fitted:
            if not service.log.events(FitEvent):
                service.log.append(FitEvent(service.plan.hash, service.plan.data_hash))
            service.ensure((), dataset)
            service.commit((), service.plan.data_hash)
            service.sweep()
        result = _result(service, out, time.perf_counter() - began)
        run.finish({key: value for key, value in result.to_dict().items() if key != "out"})
        return result


def _result(service: Service, out: str | Path, seconds: float) -> FitResult:
    plan, deleted = service.plan, service.deleted
    return FitResult(
        out=str(out),
        method=plan.method_name,
        samples=sum(len(stage.ids) for stage in plan.last_stages(deleted)),
        units=len(plan.units),
        states=len(plan.stages(deleted)),
        trained_samples=round(plan.samples(plan.stages(deleted)), 1),
        log_head=service.log.head,
        seconds=seconds,
        test_accuracy=test_accuracy(service),
    )
