"""Verify: train every state from nothing without the forgotten samples, and compare each bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

from erasure.core.errors import ModelError
from erasure.core.logging import log_user
from erasure.data import Dataset
from erasure.exact.hash_log import FitEvent, HashLog, StateEvent
from erasure.exact.plan import ExactPlan, Stage, ids_hash
from erasure.exact.predict import test_accuracy
from erasure.exact.results import ExactVerifyResult
from erasure.exact.service import Service, opened
from erasure.exact.training import state_hash, train_stage

CLAIM = (
    "each live state is, bit for bit, the result of training this plan from nothing without the forgotten samples, on "
    "this machine, with these versions and threads; states/ holds no other file"
)
NOT_CLAIMED = (
    "copies and backups of this folder, what the disk keeps of removed files, the data set itself, settings that were "
    "chosen with it, earlier predictions, and other models of the same data",
    "which states were trained on which ids, unless log_head is kept elsewhere: whoever can write the folder can write "
    "the whole log again",
)
SELECTED = (
    "the selection of representative samples, which is fixed: it was made with the forgotten samples, and without them "
    "other samples might have been selected"
)


def verify(folder: str | Path) -> ExactVerifyResult:
    """Whether the live states of the service in `folder` equal those of training without the forgotten samples.

    `exact` is True when every state has the bits of the retrained one, states/ holds no other file and the log is
    whole. Raises RunError for another data set or environment than the plan's, where a comparison means nothing.
    """
    with opened(folder) as (service, _):
        service.plan.check_environment()
        dataset = service.dataset(service.deleted, service.live.data_hash)
        stages = service.plan.stages(service.deleted)
        made = _retrained(service.plan, stages, dataset)
        differing = sorted(name for name, found in made.items() if _kept(service, name) != found)
        strangers = sorted(path.name for path in service.strangers())
        log = _log_fault(service.log, service.plan, stages, made)
        exact = not differing and not strangers and not log
        limits = [*NOT_CLAIMED, *([SELECTED] if service.plan.options.get("selection") == "entropy" else [])]
        return ExactVerifyResult(
            folder=str(folder),
            exact=exact,
            live_states=len(stages),
            forgotten=len(service.deleted),
            differing=tuple(differing),
            strangers=tuple(strangers),
            log=log or "whole",
            log_head=service.log.head,
            test_accuracy=None if differing else test_accuracy(service),
            claim=CLAIM if exact else "nothing: see differing, strangers and log",
            not_claimed=tuple(limits),
            environment=service.plan.environment,
        )


def _retrained(plan: ExactPlan, stages: list[Stage], dataset: Dataset) -> dict[str, str]:
    """The hash of each state when it is trained from nothing, by its name."""
    made: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            log_user(f"training {stage.unit}, stage {stage.number} on {len(stage.ids)} samples")
            made[stage.name] = train_stage(plan, stage, dataset, Path(folder))
    return made


def _kept(service: Service, name: str) -> str | None:
    """The hash of a live state's file; None when it is missing, damaged, or not the one in live.json."""
    try:
        found = state_hash(service.file(name))
    except ModelError:
        return None
    return found if service.live.states.get(name) == found else None


def _log_fault(log: HashLog, plan: ExactPlan, stages: list[Stage], made: dict[str, str]) -> str:
    """What in the log is broken or contradicts the states, in words; empty when nothing is."""
    broken = log.broken()
    if broken:
        return broken
    if [event.plan for event in log.events(FitEvent)] != [plan.hash]:
        return "it does not begin with this plan"
    logged = log.states()
    for stage in stages:
        parent = made[stage.parent] if stage.parent else None
        expected = StateEvent(stage.name, made[stage.name], ids_hash(stage.ids), len(stage.ids), parent)
        if logged.get(stage.name) != expected:
            return f"its entry for {stage.name} has other hashes or ids"
    return ""
