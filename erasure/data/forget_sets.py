"""Forget sets: which training samples are to be forgotten, by id.

An id is a sample's position in the training split as the model saw it, 0 to n - 1 (after `--limit`, where one was set).
A forget set is written as

    class:3          every sample of a class, or of several (class:cat,dog; also without `class:`)
    random:0.1       a share of all samples, chosen with the run's seed, or with another: random:0.1@7
    ids:5,17         these samples, or those of a file: one id a line, or a JSON list (ids:FILE)
    mislabelled:0.1  the samples whose labels were wrong in training (`erasure train classifier --mislabel 0.1`)

Mislabelled samples keep their wrong labels wherever they are measured: UA on them is 100 minus the accuracy with
respect to the labels that they were trained with.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from erasure.core.errors import OptionError
from erasure.core.files import parse_json
from erasure.core.rng import derive_seed
from erasure.data import Dataset
from erasure.data.task import CLASS, Task

BY_SAMPLE = re.compile(r"(random|ids):(.*)|(mislabelled)(?::(.*))?", re.DOTALL)
LISTED = re.compile(r"[\s\d,-]*")
NAMED = 5  # ids that an error names


def by_sample(spec: str | None) -> bool:
    """Whether a forget set is one of single samples, not of classes."""
    return spec is not None and BY_SAMPLE.fullmatch(spec.strip()) is not None


def forget_ids(spec: str, dataset: Dataset, seed: int) -> np.ndarray:
    """Ids (m,) of the samples that `spec` names, ascending and each once; 0 < m < n.

    `seed` chooses the samples of `random` and of `mislabelled`; the latter needs the seed of the training.
    Raises OptionError when an id does not exist, when nothing is named, or when nothing would be left.
    """
    kind, value = parts_of(spec)
    count = len(dataset)
    if kind == "ids":
        ids = read_ids(value, count, f"the {dataset.split} split of {dataset.name}")
    elif kind == "random":
        share, own = share_of(spec)
        ids = _drawn(count, share, derive_seed(seed if own is None else own, "forget-set"))
    elif kind == "mislabelled":
        ids = _mislabelled_ids(count, share_of(spec)[0], seed)
    else:
        task = Task.of_classes(value, dataset.class_names)
        ids = np.flatnonzero(np.isin(dataset.labels, task.forget))
    if len(ids) == count:
        raise OptionError(f"--forget {_short(spec)} names all {count:,} samples: at least one must be left to retain")
    if not len(ids):
        raise OptionError(f"--forget {_short(spec)} names none of {count:,} samples")
    return ids


def mislabelled(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, np.ndarray]:
    """`dataset` with a share of its labels wrong, uniform over the other classes, and the ids (m,) of those samples.

    The same for the same number of samples, share and seed. Raises OptionError for a share outside (0, 1), or when
    there is one class only.
    """
    classes = len(dataset.class_names)
    if classes < 2:
        raise OptionError(f"--mislabel needs at least two classes, {dataset.name} has {classes}")
    ids = _mislabelled_ids(len(dataset), _checked_share(share, "--mislabel"), seed)
    shift = np.random.default_rng(derive_seed(seed, "wrong-labels")).integers(1, classes, len(ids))
    labels = dataset.labels.copy()
    labels[ids] = (labels[ids] + shift) % classes
    return replace(dataset, labels=labels), ids


def read_ids(given: str, count: int, owner: str = "the data") -> np.ndarray:
    """Ids (m,) from "5,17", or from a file with one a line or a JSON list; ascending and each once.

    Raises OptionError when one is no whole number or does not exist among the `count` samples of `owner`.
    """
    found = np.array(_listed(given) if LISTED.fullmatch(given) else _in_file(Path(given)), dtype=object)
    outside = sorted({int(i) for i in found if not 0 <= i < count})
    if outside:
        more = f" and {len(outside) - NAMED} more" if len(outside) > NAMED else ""
        raise OptionError(
            f"ids {', '.join(map(str, outside[:NAMED]))}{more} do not exist: {owner} has samples 0 to {count - 1:,}"
        )
    return np.unique(found.astype(np.int64))


def hash_of(ids: np.ndarray) -> str:
    """SHA-256 of ids (m,)."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").data).hexdigest()


def parts_of(spec: str) -> tuple[str, str]:
    """The kind of a forget set (class, random, ids or mislabelled) and what follows it."""
    match = BY_SAMPLE.fullmatch(spec.strip())
    if match is None:
        return "class", spec.strip().removeprefix(CLASS)
    return match[1] or match[3], (match[2] or match[4] or "").strip()


def share_of(spec: str) -> tuple[float, int | None]:
    """The share of `random:0.1@7` or `mislabelled:0.1`, and the seed where one is given."""
    kind, value = parts_of(spec)
    text, at, seed = value.partition("@")
    try:
        share = float(text)
        own = int(seed) if at else None
    except ValueError:
        hint = "random:0.1, or random:0.1@7 with a seed" if kind == "random" else f"{kind}:0.1"
        raise OptionError(f"--forget {spec}: expected a share, such as {hint}") from None
    if kind == "mislabelled" and at:
        raise OptionError(f"--forget {spec}: mislabelled samples have the seed of the training, so leave @{seed} out")
    return _checked_share(share, f"--forget {spec}"), own


def _checked_share(share: float, given: str) -> float:
    if not 0 < share < 1:
        raise OptionError(f"{given}: a share lies between 0 and 1, {share:g} does not")
    return share


def _drawn(count: int, share: float, seed: int) -> np.ndarray:
    """round(share * count) of `count` positions, ascending; at least one."""
    if not round(share * count):
        raise OptionError(f"a share of {share:g} of {count:,} samples is none of them: give a larger one")
    chosen = np.random.default_rng(seed).choice(count, round(share * count), replace=False)
    return np.sort(chosen).astype(np.int64)


def _mislabelled_ids(count: int, share: float, seed: int) -> np.ndarray:
    return _drawn(count, share, derive_seed(seed, "mislabelled"))


def _listed(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise OptionError(f"{_short(text)!r} is no list of ids: expected whole numbers joined by commas") from None


def _in_file(path: Path) -> list[int]:
    """The ids of a file; a line that is none is named."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise OptionError(f"{path} does not exist: give ids joined by commas, or a file of them") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is not readable as a list of ids: {error}") from error
    if text.startswith("["):
        values: list[int] = parse_json(text, path, OptionError)
        if not all(type(value) is int for value in values):
            raise OptionError(f"{path} holds something else than whole numbers: expected a JSON list of ids")
        return values
    values = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            values += [int(line)] if line.strip() else []
        except ValueError:
            raise OptionError(f"{path}, line {number}: {_short(line)!r} is no id, expected one a line") from None
    return values


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
