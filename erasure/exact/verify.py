"""Verify: train everything from nothing without what was forgotten, and compare state by state, bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from erasure.core.errors import ModelError
from erasure.core.logging import log_user
from erasure.exact.hash_log import HashLog
from erasure.exact.plan import ExactPlan, Stage, ids_hash
from erasure.exact.predict import test_accuracy
from erasure.exact.service import Service, opened
from erasure.exact.training import state_hash, train_stage

CLAIM = (
    "each live state is, bit for bit, what this plan gives when it is trained from nothing without the forgotten "
    "samples, on this machine, with these versions and threads; states/ holds no other file"
)
NOT_CLAIMED = (
    "nothing is said of copies and backups of this folder, of what the disk keeps of removed files, of the data set "
    "itself, of settings that were chosen with it, of earlier predictions, or of other models of the same data",
    "the log shows which states were made from which ids only as far as it is kept: who can write the folder can write "
    "all of it anew, so keep log_head elsewhere",
)
SELECTED = (
    "the selection of representative samples is frozen: it was made while the forgotten samples were there, and is not "
    "what would have been selected without them"
)


def verify(folder: str | Path) -> dict[str, Any]:
    """Whether the live states of the service in `folder` equal those of training without what was forgotten.

    `exact` is True when every state has the bits of the one made anew and the log is whole; otherwise `differing`,
    `strangers` (files of states/ that should not be there) and `log` say what is wrong. Raises RunError for another
    data set or another environment than the plan's, where no comparison would mean anything.
    """
    with opened(folder) as (service, _):
        service.plan.check_environment()
        dataset = service.dataset(service.deleted, service.live["data_hash"])
        stages = service.plan.stages(service.deleted)
        with tempfile.TemporaryDirectory() as temporary:
            made: dict[str, str] = {}
            for stage in stages:
                log_user(f"training {stage.unit}, stage {stage.number} on {len(stage.ids)} samples")
                made[stage.name] = train_stage(service.plan, stage, dataset, Path(temporary))
        differing = sorted(name for name, found in made.items() if _kept(service, name) != found)
        strangers = sorted(path.name for path in service.strangers())
        log = _log_fault(service.log, service.plan, stages, made)
        exact = not differing and not strangers and not log
        limits = [*NOT_CLAIMED, *([SELECTED] if service.plan.options.get("selection") == "entropy" else [])]
        return {
            "exact": exact,
            "live_states": len(stages),
            "forgotten": len(service.deleted),
            "differing": differing,
            "strangers": strangers,
            "log": log or "whole",
            "log_head": service.log.head,
            "test_accuracy": None if differing else test_accuracy(service),
            "claim": CLAIM if exact else "nothing: see differing, strangers and log",
            "not_claimed": limits,
            "environment": service.plan.environment,
        }


def _kept(service: Service, name: str) -> str | None:
    """The hash of a live state's file, where live.json says the same."""
    try:
        found = state_hash(service.file(name))
    except ModelError:
        return None
    return found if service.live["states"].get(name) == found else None


def _log_fault(log: HashLog, plan: ExactPlan, stages: list[Stage], made: dict[str, str]) -> str:
    """What in the log is broken or tells another story than the states; empty when all is well."""
    broken = log.broken()
    if broken:
        return broken
    if [record.get("plan") for record in log.records("fit")] != [plan.hash]:
        return "it does not begin with this plan"
    logged = log.states()
    for stage in stages:
        parent = made[stage.parent] if stage.parent else None
        told = {"hash": made[stage.name], "ids": ids_hash(stage.ids), "num_ids": len(stage.ids), "parent": parent}
        if {key: logged.get(stage.name, {}).get(key) for key in told} != told:
            return f"it tells of {stage.name} something else"
    return ""
