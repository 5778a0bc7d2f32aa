"""The folder of an exact service, and the request to forget.

    plan.json      the frozen plan
    live.json      which ids are forgotten, which states hold now and their hashes; its replacement is the one commit
    pending.json   the request in progress, written before anything is done for it
    states/        one file a stage, named by the ids that it was made from
    log.jsonl      what was trained, asked and removed

A request is written down, then the missing states are trained beside the old ones, then live.json is replaced, then
every file that it does not name is removed, then the request is struck out. Each step may be repeated, so whatever
command comes first after a kill completes the request from where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from erasure.core.errors import OptionError, RunError
from erasure.core.files import held, read_json, write_json, writing
from erasure.core.logging import log_user
from erasure.core.run_dir import fingerprint
from erasure.data import Dataset
from erasure.data.forget_sets import NAMED, read_ids
from erasure.exact.hash_log import HashLog
from erasure.exact.plan import ExactPlan, Stage, ids_hash, without
from erasure.exact.training import SUFFIX, state_hash, train_stage


class Service:
    """An exact service on disk; who writes to it holds its lock (`opened`)."""

    def __init__(self, folder: Path, *, fitting: bool = False) -> None:
        """Raises RunError when `folder` holds no service or, but for `fitting`, one whose fit is not finished."""
        self.folder, self.plan = folder, ExactPlan.read(folder)
        self.log = HashLog(folder / "log.jsonl")
        self.live: dict[str, Any] = {"deleted": [], "data_hash": self.plan.data_hash, "states": {}}
        if self.fitted:
            self.live = _read(folder / "live.json", {*self.live})
        elif not fitting:
            raise RunError(f"{folder} holds a fit that was interrupted: give the same `erasure exact fit` again")

    @property
    def fitted(self) -> bool:
        """Whether all states of the plan were made once."""
        return (self.folder / "live.json").is_file()

    @property
    def deleted(self) -> list[int]:
        """The ids that were forgotten so far."""
        return list(self.live["deleted"])

    @property
    def pending(self) -> dict[str, Any] | None:
        """The request that was begun and is not done, if any."""
        path = self.folder / "pending.json"
        return _read(path, {"request", "ids", "data_hash"}) if path.is_file() else None

    def file(self, name: str) -> Path:
        """Where the state of that name is kept."""
        return self.folder / "states" / (name + SUFFIX)

    def dataset(self, deleted: Collection[int], data_hash: str) -> Dataset:
        """The data, of which only what is not `deleted` must still be what it was when the plan was drawn."""
        dataset = self.plan.dataset()
        if len(dataset) != self.plan.num_samples or without(dataset, deleted).hash != data_hash:
            raise RunError(
                f"{self.folder} was fitted on another data set than {self.plan.source['data']} is now (its hash "
                "differs): bring back the samples that were not forgotten; forgotten ones may be blank, not missing"
            )
        return dataset

    def check(self, ids: Collection[int]) -> None:
        """Raise OptionError for ids that were forgotten before, and for none."""
        gone = sorted(set(ids) & set(self.deleted))
        if gone:
            more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
            raise OptionError(f"ids {', '.join(map(str, gone[:NAMED]))}{more} were forgotten before: leave them out")
        if not ids:
            raise OptionError("--ids names no sample")

    def begin(self, ids: Collection[int]) -> None:
        """Write the request down, with the hash of the data that it leaves; nothing is written if it must fail."""
        dataset = self.dataset(self.deleted, self.live["data_hash"])
        if any(stage.name not in self.live["states"] for stage in self.plan.stages({*self.deleted, *ids})):
            self.plan.check_environment()
        number = len(self.log.records("request")) + 1
        left = without(dataset, {*self.deleted, *ids}).hash
        write_json(self.folder / "pending.json", {"request": number, "ids": sorted(ids), "data_hash": left})

    def complete(self) -> dict[str, Any]:
        """Do what pending.json asks for, whatever of it was done before; returns the counts."""
        pending = self.pending
        assert pending is not None
        number, ids = pending["request"], pending["ids"]
        deleted = sorted({*self.deleted, *ids})
        if not any(record.get("request") == number for record in self.log.records("request")):
            self.log.append("request", request=number, ids=ids)
        dataset = self.dataset(deleted, pending["data_hash"])
        trained = self.ensure(deleted, dataset)
        self.commit(deleted, pending["data_hash"])
        removed = self.sweep()
        if not any(record.get("request") == number for record in self.log.records("forgotten")):
            self.log.append("forgotten", request=number, removed=removed, live=fingerprint(self.live["states"]))
        with writing(self.folder):
            (self.folder / "pending.json").unlink()
        samples, naive = self.plan.samples(trained), self.plan.naive_samples(deleted)
        return {
            "forgotten": ids,
            "forgotten_in_all": len(deleted),
            "retrained_states": len(trained),
            "live_states": len(self.live["states"]),
            "retrained_samples": round(samples, 1),
            "naive_samples": round(naive, 1),
            "share_of_naive": round(samples / naive, 6) if naive else 0.0,
            "removed_files": len(removed),
            "log_head": self.log.head,
        }

    def ensure(self, deleted: Collection[int], dataset: Dataset) -> list[Stage]:
        """Train the stages whose states are missing, each after its parent; returns those that were trained."""
        logged = self.log.states()
        trained: list[Stage] = []
        for stage in self.plan.stages(deleted):
            if stage.name in logged and self.file(stage.name).is_file():
                continue
            if not trained:
                self.plan.check_environment()
            parent = logged[stage.parent]["hash"] if stage.parent else None
            if stage.parent and state_hash(self.file(stage.parent)) != parent:
                raise RunError(
                    f"{self.file(stage.parent)} is not what the log says: remove it, and the same command makes it anew"
                )
            log_user(f"training {stage.unit}, stage {stage.number} on {len(stage.ids)} samples")
            made = train_stage(self.plan, stage, dataset, self.folder / "states")
            logged[stage.name] = {"hash": made, "ids": ids_hash(stage.ids), "num_ids": len(stage.ids), "parent": parent}
            self.log.append("state", state=stage.name, **logged[stage.name])
            trained.append(stage)
        return trained

    def commit(self, deleted: Collection[int], data_hash: str) -> None:
        """From here on the states without `deleted` are those that hold."""
        logged = self.log.states()
        states = {stage.name: logged[stage.name]["hash"] for stage in self.plan.stages(deleted)}
        self.live = {"deleted": sorted(deleted), "data_hash": data_hash, "states": states}
        write_json(self.folder / "live.json", self.live)

    def sweep(self) -> list[str]:
        """Remove every file of states/ that does not hold, unfinished ones too; returns their names."""
        names = sorted(path.name for path in self.strangers())
        with writing(self.folder / "states"):
            for name in names:
                (self.folder / "states" / name).unlink(missing_ok=True)
        return names

    def strangers(self) -> list[Path]:
        """The files of states/ that live.json does not name."""
        known = {name + SUFFIX for name in self.live["states"]}
        root = self.folder / "states"
        return [path for path in root.iterdir() if path.name not in known] if root.is_dir() else []


def _read(path: Path, names: set[str]) -> dict[str, Any]:
    document = read_json(path)
    if set(document) != names:
        raise RunError(f"{path} is damaged: expected exactly {', '.join(sorted(names))}")
    return document


@contextlib.contextmanager
def opened(folder: str | Path) -> Iterator[tuple[Service, dict[str, Any] | None]]:
    """The service in `folder`, held alone, and what came of a request that was pending, now completed.

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


def forget(folder: str | Path, ids: str | Collection[int]) -> dict[str, Any]:
    """Forget samples in the service in `folder`; returns what was retrained, beside naive retraining.

    `ids` are numbers, or text such as "5,17", or the path of a file of them. Raises OptionError, and changes nothing,
    for ids that do not exist or were forgotten before. The request that a kill interrupted is completed by being given
    again, or by whatever is asked next.
    """
    with opened(folder) as (service, completed):
        wanted = ids_of(ids, service.plan.num_samples, str(service.folder))
        if completed is not None and wanted == completed["forgotten"]:
            return completed
        service.check(wanted)
        service.begin(wanted)
        return service.complete()


def ids_of(given: str | Collection[int], count: int, owner: str) -> list[int]:
    """The ids that are meant, ascending and each once; raises OptionError for one outside 0 to `count` - 1."""
    text = given if isinstance(given, str) else ",".join(map(str, given))
    return [int(i) for i in read_ids(text, count, owner)]
