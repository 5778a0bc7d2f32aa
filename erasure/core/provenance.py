"""What an exported file says of itself: from which weights, by which method, what changed, and how it scored.

It is JSON under the key "erasure" of a safetensors header, and whole in a file beside it. A reader believes none of it:
`erasure verify` recomputes what can be recomputed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from erasure.core.errors import ModelError
from erasure.core.files import parse_object

KEY = "erasure"
SIDECAR = "provenance.json"  # in a folder; beside a file it has the file's name
HEADER_LIMIT = 900_000  # characters; programs read a header whole, and some show it


def provenance_of(document: Mapping[str, Any], marks: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The provenance of a run, from its run.json and the `marks` of its cleaned model."""
    settings, trained, result = document["settings"], document["trained"], document.get("result", {})
    return {
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
        "mask_density": document.get("mask_density"),
        "saliency": settings["saliency"],
        "seed": settings["seed"],
        "changed_weights": trained["changed_weights"],
        "total_weights": trained["total_weights"],
        "relative_change": trained.get("relative_change"),
        "metrics": {name: _score(score) for name, score in result.get("metrics", {}).items()},
        "versions": document["versions"],
        "marks": dict(marks or {}),
    }


def name_of(model: str) -> str:
    """How a base is called in public: the last part of a path, a hub id as it is."""
    return Path(model).name if Path(model).is_absolute() or Path(model).exists() else model


def _anchors(concept: Mapping[str, Any] | None) -> list[str] | None:
    """What took the place of the concept, each answer once, in order."""
    return list(dict.fromkeys(str(row["anchor"]) for row in concept["forget"])) if concept else None


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    return {key: score.get(key) for key in ("value", "unit", "n", "interval", "definition")}


def header_text(provenance: Mapping[str, Any]) -> str:
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


def read_provenance(metadata: Mapping[str, str], source: object) -> dict[str, Any] | None:
    """The provenance in a header, None without any; raises ModelError when it is damaged."""
    if KEY not in metadata:
        return None
    return parse_object(metadata[KEY], f"{source}: its provenance is damaged: {KEY!r}", ModelError)
