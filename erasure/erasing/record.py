"""What an erasure writes into run.json, with its one reader: the settings, what training did, and the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, cast

from erasure.core.errors import RunError
from erasure.core.run_dir import RunRecord, read_record


class EraseSettings(TypedDict, total=False):
    """Everything that decides the bits of an erasure; its hash is the fingerprint of the run.

    The entries after `probe_every` come from the target: the forget set and the data of classes and samples, or the
    concept whole and where its training images come from.
    """

    model: str
    model_hash: str
    method: str
    options: dict[str, Any]
    mask: str
    mask_hash: str | None
    saliency: dict[str, Any]
    seed: int
    evaluate: bool
    evaluation: dict[str, Any]
    probe_every: int
    forget: str | None
    data: str | None
    data_dir: str | None
    image_size: int | None
    data_hash: str
    forget_ids: dict[str, Any]
    concept: dict[str, Any]
    training_images: dict[str, Any]
    training_images_seed: int
    images_hash: dict[str, str | None]
    parts_hash: str


def settings_of(record: RunRecord) -> EraseSettings:
    """The settings of an erasure's record."""
    return cast(EraseSettings, record["settings"])


def read_erase_record(path: Path) -> RunRecord:
    """Read the run.json of an erasure; raises RunError when it is missing or belongs to another verb."""
    record = read_record(path)
    if record["verb"] != "erase":
        raise RunError(f"{path} is the record of `erasure {record['verb']}`: expected the run of `erasure erase`")
    return record
