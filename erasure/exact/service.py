"""The folder of an exact service, and the request to forget.

    plan.json      the frozen plan
    live.json      the forgotten ids, and the names and hashes of the current states; replacing it commits a request
    pending.json   the request in progress, written before anything else is done for it
    states/        one file for each stage, named by the ids that it was trained on
    log.jsonl      what was trained, requested and removed

A request has five steps: write pending.json, train the missing states beside the old ones, replace live.json, remove
every file that live.json does not name, remove pending.json. Each step can be repeated, so the first command after a
kill completes the request from the step that was interrupted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from erasure.core.errors import OptionError, RunError
from erasure.core.files import held, read_json, write_json, writing
from erasure.core.logging import log_user
from erasure.core.records import Record
from erasure.core.run_dir import fingerprint
from erasure.data import Dataset
from erasure.data.forget_sets import NAMED, read_ids
from erasure.exact.hash_log import ForgottenEvent, HashLog, RequestEvent, StateEvent
from erasure.exact.plan import ExactPlan, Stage, ids_hash, without
from erasure.exact.results import ForgetResult
from erasure.exact.training import SUFFIX, state_hash, train_stage


@dataclass(frozen=True)
class LiveStates(Record):
    """live.json: the forgotten ids, the hash of the data without them, and the hash of each current state by name."""

    deleted: tuple[int, ...]
    data_hash: str
    states: dict[str, str]


@dataclass(frozen=True)
class PendingRequest(Record):
    """pending.json: the number of a request, the ids to forget, and the hash of the data without all forgotten ids."""

    request: int
    ids: tuple[int, ...]
    data_hash: str


class Service:
    """An exact service on disk. A process that writes to it must hold its lock (`opened`)."""

    def __init__(self, folder: Path, *, fitting: bool = False) -> None:
        """Raise RunError when `folder` holds no service or, unless `fitting`, one whose fit is not finished."""
        self.folder, self.plan = folder, ExactPlan.read(folder)
        self.log = HashLog(folder / "log.jsonl")
        self.live = LiveStates((), self.plan.data_hash, {})
        path = folder / "live.json"
        if self.fitted:
            self.live = LiveStates.from_dict(read_json(path), f"{path} is damaged")
        elif not fitting:
            raise RunError(f"{folder} holds a fit that was interrupted: give the same `erasure exact fit` again")

    @property
    def fitted(self) -> bool:
        """Whether the fit is finished: all states of the plan were trained once."""
        return (self.folder / "live.json").is_file()

    @property
    def deleted(self) -> list[int]:
        """The ids that were forgotten so far."""
        return list(self.live.deleted)

    @property
    def pending(self) -> PendingRequest | None:
        """The request that was begun and is not finished, if any."""
        path = self.folder / "pending.json"
        return PendingRequest.from_dict(read_json(path), f"{path} is damaged") if path.is_file() else None

    def file(self, name: str) -> Path:
        """The path of the state of that name."""
        return self.folder / "states" / (name + SUFFIX)

    def dataset(self, deleted: Collection[int], data_hash: str) -> Dataset:
        """The data; raises RunError when any sample that is not `deleted` has changed since the plan was drawn."""
        dataset = self.plan.dataset()
        if len(dataset) != self.plan.num_samples or without(dataset, deleted).hash != data_hash:
            raise RunError(
                f"{self.folder} was fitted on another data set than {self.plan.source.data} is now (its hash "
                "differs): restore the samples that were not forgotten; forgotten ones may be blank, but not missing"
            )
        return dataset

    def check(self, ids: Collection[int]) -> None:
        """Raise OptionError when `ids` is empty or holds ids that were forgotten before."""
        repeated = sorted(set(ids) & set(self.deleted))
        if repeated:
            more = f" and {len(repeated) - NAMED} more" if len(repeated) > NAMED else ""
            raise OptionError(
                f"ids {', '.join(map(str, repeated[:NAMED]))}{more} were forgotten before: leave them out"
            )
        if not ids:
            raise OptionError("--ids names no sample")

    def begin(self, ids: Collection[int]) -> None:
        """Write pending.json with the hash of the remaining data; checks first, so a request that fails writes nothing.

        Raises RunError when the data or, if training is needed, the environment differs from the plan's.
        """
        dataset = self.dataset(self.deleted, self.live.data_hash)
        if any(stage.name not in self.live.states for stage in self.plan.stages({*self.deleted, *ids})):
            self.plan.check_environment()
        remaining = without(dataset, {*self.deleted, *ids}).hash
        request = PendingRequest(len(self.log.events(RequestEvent)) + 1, tuple(sorted(ids)), remaining)
        write_json(self.folder / "pending.json", request.to_dict())

    def complete(self) -> ForgetResult:
        """Carry out the request of pending.json, whichever steps of it were done before."""
        pending = self.pending
        assert pending is not None
        deleted = sorted({*self.deleted, *pending.ids})
        if all(event.request != pending.request for event in self.log.events(RequestEvent)):
            self.log.append(RequestEvent(pending.request, pending.ids))
        dataset = self.dataset(deleted, pending.data_hash)
        trained = self.ensure(deleted, dataset)
        self.commit(deleted, pending.data_hash)
        removed = self.sweep()
        if all(event.request != pending.request for event in self.log.events(ForgottenEvent)):
            self.log.append(ForgottenEvent(pending.request, tuple(removed), fingerprint(self.live.states)))
        with writing(self.folder):
            (self.folder / "pending.json").unlink()
        samples, naive = self.plan.samples(trained), self.plan.naive_samples(deleted)
        return ForgetResult(
            folder=str(self.folder),
            forgotten=pending.ids,
            forgotten_in_all=len(deleted),
            retrained_states=len(trained),
            live_states=len(self.live.states),
            retrained_samples=round(samples, 1),
            naive_samples=round(naive, 1),
            share_of_naive=round(samples / naive, 6) if naive else 0.0,
            removed_files=len(removed),
            log_head=self.log.head,
        )

    def ensure(self, deleted: Collection[int], dataset: Dataset) -> list[Stage]:
        """Train the stages whose states are missing, each after its parent; returns the stages that were trained.

        Raises RunError when the parent's state on disk is not the one that the log names.
        """
        logged = self.log.states()
        trained: list[Stage] = []
        for stage in self.plan.stages(deleted):
            if stage.name in logged and self.file(stage.name).is_file():
                continue
            if not trained:
                self.plan.check_environment()
            parent = logged[stage.parent].hash if stage.parent else None
            if stage.parent and state_hash(self.file(stage.parent)) != parent:
                raise RunError(
                    f"{self.file(stage.parent)} is not what the log says: remove it, and the same command retrains it"
                )
            log_user(f"training {stage.unit}, stage {stage.number} on {len(stage.ids)} samples")
            made = train_stage(self.plan, stage, dataset, self.folder / "states")
            logged[stage.name] = StateEvent(stage.name, made, ids_hash(stage.ids), len(stage.ids), parent)
            self.log.append(logged[stage.name])
            trained.append(stage)
        return trained

    def commit(self, deleted: Collection[int], data_hash: str) -> None:
        """Make the states without `deleted` the current ones, by replacing live.json."""
        logged = self.log.states()
        states = {stage.name: logged[stage.name].hash for stage in self.plan.stages(deleted)}
        self.live = LiveStates(tuple(sorted(deleted)), data_hash, states)
        write_json(self.folder / "live.json", self.live.to_dict())

    def sweep(self) -> list[str]:
        """Remove every file of states/ that live.json does not name, unfinished ones too; returns their names."""
        names = sorted(path.name for path in self.strangers())
        with writing(self.folder / "states"):
            for name in names:
                (self.folder / "states" / name).unlink(missing_ok=True)
        return names

    def strangers(self) -> list[Path]:
        """The files of states/ that live.json does not name."""
        known = {name + SUFFIX for name in self.live.states}
        root = self.folder / "states"
        return [path for path in root.iterdir() if path.name not in known] if root.is_dir() else []


@contextlib.contextmanager
def opened(folder: str | Path) -> Iterator[tuple[Service, ForgetResult | None]]:
    """Lock the service in `folder` and complete a pending request; yields the service and that request's result.

    Raises RunError when there is no service, or while another process holds it.
    """
    root = Path(folder)
    ExactPlan.read(root)
    lock = held(root / ".lock", root)
    try:
        service = Service(root)
        yield service, service.complete() if service.pending else None
    finally:
        lock.release()


def forget(folder: str | Path, ids: str | Collection[int]) -> ForgetResult:
    """Forget samples in the service in `folder`; returns what was retrained, beside naive retraining.

    `ids` are numbers, or text such as "5,17", or the path of a file of them. Raises OptionError, and changes nothing,
    for ids that do not exist or were forgotten before. A request that was interrupted is completed when it is given
    again, or by the next command of any kind.
    """
    with opened(folder) as (service, completed):
        requested = ids_of(ids, service.plan.num_samples, str(service.folder))
        if completed is not None and tuple(requested) == completed.forgotten:
            return completed
        service.check(requested)
        service.begin(requested)
        return service.complete()


def ids_of(given: str | Collection[int], count: int, owner: str) -> list[int]:
    """The ids that `given` names, ascending and each once; raises OptionError for one outside 0 to `count` - 1."""
    text = given if isinstance(given, str) else ",".join(map(str, given))
    return [int(i) for i in read_ids(text, count, owner)]
