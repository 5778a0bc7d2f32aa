"""Provenance: what an exported file says of itself. From which weights, by which method, what changed, how it scored.

It is JSON under the key "erasure" of a safetensors header, and whole in a file beside it. It proves nothing by itself:
`erasure verify` recomputes what can be recomputed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, cast

from erasure.core.errors import ErasureError, ModelError, RunError
from erasure.core.files import parse_object, read_json, write_json

KEY = "erasure"
SIDECAR = "provenance.json"  # in a folder; beside a file it has the file's name
HEADER_LIMIT = 900_000  # characters; programs read a header whole, and some show it


class MeasuredValue(TypedDict):
    """The value of a metric, over how many trials, with its interval of 95 %, and the metric's version."""

    value: float
    unit: str | None
    n: int
    interval: list[float] | None
    definition: str


class LoraLayer(TypedDict):
    """The layer whose change a LoRA approximates worst."""

    layer: str
    relative_error: float


class LeftOut(TypedDict):
    """What a LoRA cannot hold: norms and biases, and their share of the change's norm."""

    tensors: int
    weights: int
    share_of_change: float


class LoraReport(TypedDict, total=False):
    """How a LoRA approximates the change: its rank, its layers, and what is missing relative to the change's norm."""

    keys: str
    rank: int
    layers: int
    relative_error: float
    worst: LoraLayer
    left_out: LeftOut


class DeltaSource(TypedDict):
    """The models that a delta was made from, of a model to which it was applied."""

    base: str | None
    base_hash: str | None
    hash: str | None


class Provenance(TypedDict, total=False):
    """The record of an exported file; hashes are SHA-256."""

    tool: str
    base: str  # what the original is called
    base_hash: str  # of the original's network
    hash: str  # of the cleaned network
    moves: str  # the part that the method changed: network or text encoder
    part_hash: str  # of that part where it is not the network, and of the original's
    base_part_hash: str
    data_hash: str | None
    forget: str | None
    anchor: list[str] | None
    concept: dict[str, Any] | None  # as Concept.as_json writes it, or its name and counts where it is very long
    method: str
    options: dict[str, Any]
    mask: str
    mask_density: float | None
    saliency: dict[str, Any]
    seed: int
    changed_weights: int
    total_weights: int
    relative_change: float | None
    metrics: dict[str, MeasuredValue]
    versions: dict[str, str]
    marks: dict[str, Any]  # see Marks in models/info.py
    family: str
    format: str
    dtype: str
    changed: dict[str, list[Any]]  # by tensor: relative change, number of changed weights
    sha256: dict[str, str]  # of components, of all tensors, or of the unchanged ones
    lora: LoraReport
    delta: DeltaSource
    applied_to: str


def provenance_of(record: Mapping[str, Any], marks: Mapping[str, Any] | None = None) -> Provenance:
    """The provenance of a run, from its run.json and the marks of its cleaned model."""
    settings, trained, result = record["settings"], record["trained"], record.get("result", {})
    return cast(
        Provenance,
        {
            "tool": f"erasure {version('erasure')}",
            "base": name_of(settings["model"]),
            "base_hash": settings["model_hash"],
            "hash": trained["hash"],
            **{key: trained[key] for key in ("moves", "part_hash", "base_part_hash") if key in trained},
            "data_hash": settings.get("data_hash"),
            "forget": settings["forget"],
            "anchor": _anchors(settings.get("concept")),
            "concept": settings.get("concept"),
            "method": settings["method"],
            "options": settings["options"],
            "mask": Path(settings["mask"]).name,
            "mask_density": record.get("mask_density"),
            "saliency": settings["saliency"],
            "seed": settings["seed"],
            "changed_weights": trained["changed_weights"],
            "total_weights": trained["total_weights"],
            "relative_change": trained.get("relative_change"),
            "metrics": {name: _measured(score) for name, score in result.get("metrics", {}).items()},
            "versions": record["versions"],
            "marks": dict(marks or {}),
        },
    )


def name_of(model: str) -> str:
    """What a model is called in public: the last part of a path, or a hub id as it is."""
    return Path(model).name if Path(model).is_absolute() or Path(model).exists() else model


def _anchors(concept: Mapping[str, Any] | None) -> list[str] | None:
    """What takes the place of the concept: each anchor once, in order."""
    return list(dict.fromkeys(str(row["anchor"]) for row in concept["forget"])) if concept else None


def _measured(score: Mapping[str, Any]) -> dict[str, Any]:
    return {key: score.get(key) for key in MeasuredValue.__annotations__}


def header_text(provenance: Provenance) -> str:
    """The provenance for a header; the prompts of a very long concept become their number and their SHA-256."""
    text = json.dumps(provenance)
    concept = provenance.get("concept")
    if len(text) <= HEADER_LIMIT or not concept:
        return text
    raw = json.dumps(concept, sort_keys=True).encode()
    short = {
        "name": concept["name"],
        "num_forget": len(concept["forget"]),
        "num_retain": len(concept["retain"]),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    return json.dumps({**provenance, "concept": short, "anchor": None})


def write_sidecar(path: Path, provenance: Provenance) -> None:
    """Write the whole provenance as a JSON file, into an exported folder or beside an exported file."""
    write_json(path, provenance)


def read_provenance(metadata: Mapping[str, str], source: object) -> Provenance | None:
    """The provenance in a header, None without any; raises ModelError when it is damaged."""
    if KEY not in metadata:
        return None
    return cast(Provenance, parse_object(metadata[KEY], f"{source}: its provenance is damaged: {KEY!r}", ModelError))


def read_sidecar(folder: Path, error: type[ErasureError] = RunError) -> Provenance | None:
    """The provenance of an exported folder, None without any; raises `error` when it is damaged."""
    path = folder / SIDECAR
    return cast(Provenance, read_json(path, error)) if path.is_file() else None
