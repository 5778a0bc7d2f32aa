"""ModelInfo: what a model folder's erasure.json says of the model, with one reader and one writer.

Everything in it is plain JSON. Its Marks say what was erased from the model; every export and import
carries them over, because the next erasure must not train the model to keep what an earlier one took out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from erasure.core.errors import ModelError
from erasure.core.files import read_json, write_json

FILE = "erasure.json"
OPTIONS_FILE = "erase.json"  # options that the model's authors recommend, by method


class SteeringInfo(TypedDict, total=False):
    """Guidance away from a text or from labels, which is applied while drawing (see models/guidance.py)."""

    kind: str
    text: str
    labels: list[int]
    scale: float
    threshold: float
    momentum: float
    decay: float
    warmup: int


class ErasedInfo(TypedDict):
    """The last erasure of a cleaned model."""

    model_hash: str
    forget: str | None
    method: str
    mask: str
    seed: int


class Marks(TypedDict, total=False):
    """What a model's info says of its past; it goes with the weights into every export and comes back with them."""

    erased: ErasedInfo
    erased_classes: list[int]
    erased_samples: list[str]  # forget sets, as --forget takes them
    erased_values: list[list[str]]  # (domain, value) pairs that prompts showed
    erased_concepts: list[str]
    steering: SteeringInfo


class ModelInfo(Marks, total=False):
    """The entries of erasure.json; a model that other tools made has none of them but what its network shows."""

    family: str
    channels: int
    image_size: int
    class_names: list[str]
    data: str  # name or path of the data set it was trained on
    recipe: dict[str, Any]  # how it was trained: fields of a Recipe, and of its data
    training: dict[str, Any]  # what its training measured
    arch: str  # of a classifier
    aspects: dict[str, Any]  # what a classifier of several aspects tells: fields of Aspect, by name
    image_mean: list[float]
    image_std: list[float]
    sampling: dict[str, Any]  # defaults of sampling: num_inference_steps, eta, guidance_scale
    null_label: int
    condition_drop: float  # share of labels that training replaces by the null label
    max_sequence_length: int
    pipeline: dict[str, bool]  # switches of model_index.json
    weights_dtype: str  # number format of the network on disk
    dtypes: dict[str, str]  # the same for each component of a pipeline
    max_shard_size: str
    erase: dict[str, dict[str, Any]]  # recommended options, by method


def marks_of(info: Mapping[str, Any]) -> Marks:
    """A copy of the entries that say what was erased from the model."""
    return cast(Marks, {key: copy.deepcopy(info[key]) for key in Marks.__annotations__ if key in info})


def read_info(folder: Path) -> ModelInfo:
    """The info of a model folder with the options that its erase.json recommends; empty without either file.

    Raises ModelError when a file is damaged.
    """
    info = read_json(folder / FILE, ModelError) if (folder / FILE).is_file() else {}
    if (folder / OPTIONS_FILE).is_file():
        info["erase"] = read_json(folder / OPTIONS_FILE, ModelError)
    names = info.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{folder / FILE}: class_names must be a list of names")
    if not all(isinstance(options, dict) for options in info.get("erase", {}).values()):
        raise ModelError(f"{folder / OPTIONS_FILE}: expected options by method, such as {{'salun': {{'steps': 100}}}}")
    return cast(ModelInfo, info)


def forget_advice(info: ModelInfo) -> None:
    """Drop what was true of the weights before they changed: their number format on disk, and the options for them."""
    info.pop("weights_dtype", None)
    info.pop("erase", None)


def add_marks(info: ModelInfo, marks: Mapping[str, Any]) -> None:
    """Add the marks of another copy of the model to `info`; lists are joined, anything else is replaced."""
    own: dict[str, Any] = {**info}
    for key, value in cast(dict[str, Any], marks_of(marks)).items():
        old = own.get(key, [])
        joined = isinstance(value, list) and isinstance(old, list)
        own[key] = [*old, *(mark for mark in value if mark not in old)] if joined else value
    info.update(cast(ModelInfo, own))


def write_info(folder: Path, info: ModelInfo, family: str) -> None:
    """Write the erasure.json of a model folder."""
    write_json(folder / FILE, {**info, "family": family})
