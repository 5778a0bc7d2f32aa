"""The frozen plan of an exact service: which ids are in which slice of which unit, and all that decides the numbers."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from erasure.core import registry
from erasure.core.config import build
from erasure.core.distributed import device, num_processes
from erasure.core.errors import RunError
from erasure.core.files import read_json, write_json
from erasure.core.records import Facts, Record
from erasure.core.rng import derive_seed
from erasure.core.run_dir import differences, fingerprint, versions
from erasure.data import Dataset, load_dataset
from erasure.exact.base import DataInfo, ExactMethod

Units = dict[str, list[list[int]]]
Environment = Mapping[str, str | int]
NUMERIC = ("python", "torch", "transformers", "numpy")  # the packages that decide the bits


@dataclass(frozen=True)
class Stage:
    """Training of `unit` on its slices 1 to `number`: the ids it sees, and the names of its state and its parent's."""

    unit: str
    number: int
    ids: tuple[int, ...]
    name: str
    parent: str | None

    @property
    def unit_number(self) -> int:
        """The unit's number: that of the shard, or the label of the class."""
        return int(self.unit.rpartition("-")[2])


@dataclass(frozen=True)
class DataSpec(Record):
    """How the data set was given: its name or place, where named sets lie, and the image size, if one was set."""

    data: str
    data_dir: str | None
    image_size: int | None

    def load(self, split: str = "train") -> Dataset:
        """The data as it is on disk now."""
        return load_dataset(self.data, split, self.data_dir, self.image_size)


@dataclass(frozen=True)
class ExactPlan(Record):
    """Everything that a state depends on, except the samples themselves."""

    method_name: str
    options: Facts
    seed: int
    source: DataSpec
    data_hash: str
    num_samples: int
    info: DataInfo
    units: Units
    environment: Environment

    @staticmethod
    def draw(
        method_name: str,
        method: ExactMethod,
        dataset: Dataset,
        source: DataSpec,
        seed: int,
        likely: Collection[int],
    ) -> ExactPlan:
        """Assign every sample by its own id; those `likely` to be forgotten come in the last slice of their unit."""
        num_classes = len(dataset.class_names)
        units: Units = {
            f"{method.kind}-{i}": [[] for _ in range(method.slices)] for i in range(method.num_units(num_classes))
        }
        marked = set(likely)
        for sample in method.chosen(dataset).tolist():
            unit = f"{method.kind}-{method.unit_of(sample, int(dataset.labels[sample]), seed)}"
            number = method.slices - 1 if sample in marked else derive_seed(seed, "slice", sample) % method.slices
            units[unit][number].append(sample)
        facts = (source, dataset.hash, len(dataset), DataInfo.of(dataset), units, environment(method.threads))
        return ExactPlan(method_name, asdict(method), seed, *facts)

    @staticmethod
    def read(folder: Path) -> ExactPlan:
        """The plan of a service; raises RunError when there is none or it is damaged."""
        path = folder / "plan.json"
        if not path.is_file():
            raise RunError(f"{folder} is not a folder of `erasure exact fit`: it has no plan.json")
        return ExactPlan.from_dict(read_json(path), f"{path} is damaged")

    def write(self, folder: Path) -> None:
        """Write plan.json, atomically."""
        write_json(folder / "plan.json", self.to_dict())

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the plan; every state carries it."""
        return fingerprint(self.to_dict())

    @cached_property
    def method(self) -> ExactMethod:
        """The method with its settings."""
        method: ExactMethod = build(registry.load("exact", self.method_name), self.method_name, self.options)
        return method

    def stages(self, deleted: Collection[int]) -> list[Stage]:
        """The stages without the ids `deleted`, each after its parent; stages without samples are left out."""
        forgotten, found = set(deleted), []
        for unit, slices in self.units.items():
            seen: list[int] = []
            parent = None
            for number, ids in enumerate(slices, start=1):
                seen += [sample for sample in ids if sample not in forgotten]
                if seen:
                    name = f"{unit}-stage-{number}-{ids_hash(seen)[:32]}"
                    found.append(Stage(unit, number, tuple(sorted(seen)), name, parent))
                    parent = name
        return found

    def samples(self, stages: Collection[Stage]) -> float:
        """How many samples `stages` see in training, each counted as often as it is seen."""
        return self.method.stage_epochs * sum(len(stage.ids) for stage in stages)

    def naive_samples(self, deleted: Collection[int]) -> float:
        """The same for one model that is retrained from nothing on all remaining samples."""
        forgotten = set(deleted)
        left = sum(sample not in forgotten for slices in self.units.values() for ids in slices for sample in ids)
        return self.method.epochs * left

    def last_stages(self, deleted: Collection[int]) -> list[Stage]:
        """The finished stage of each unit that has samples left."""
        return list({stage.unit: stage for stage in self.stages(deleted)}.values())

    def dataset(self, split: str = "train") -> Dataset:
        """The data as it is on disk now."""
        return self.source.load(split)

    def check_environment(self) -> None:
        """Raise RunError when training here would not give the same bits; the message names what differs."""
        found = differences(self.environment, environment(self.method.threads))
        if found:
            raise RunError(
                f"the plan was made on another machine or with other versions ({'; '.join(found[:3])}), so its states "
                "cannot be reproduced bit for bit: use that machine and those versions, or fit again here"
            )


def ids_hash(ids: Collection[int]) -> str:
    """SHA-256 of a set of ids."""
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()


def subset(dataset: Dataset, ids: Collection[int]) -> Dataset:
    """The samples of `ids`, in order of their ids."""
    chosen = np.array(sorted(ids), dtype=np.int64)
    return replace(dataset, images=dataset.images[chosen], labels=dataset.labels[chosen])


def without(dataset: Dataset, deleted: Collection[int]) -> Dataset:
    """All samples but those of the ids `deleted`."""
    return subset(dataset, set(range(len(dataset))) - set(deleted))


def environment(threads: int) -> Environment:
    """What decides the bits besides the plan: versions, processor, device, threads."""
    if num_processes() > 1:
        raise RunError("exact unlearning runs in one process: start it without `accelerate launch`")
    found = versions()
    place = device()
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    packages = {package: found[package] for package in NUMERIC if package in found}
    return {**packages, "machine": platform.machine(), "cpu": _processor(), "device": name, "threads": threads}


def _processor() -> str:
    """The processor's name, if the system reports it, and the instruction set that PyTorch uses."""
    path, name = Path("/proc/cpuinfo"), platform.processor()
    if path.is_file():
        lines = (line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
