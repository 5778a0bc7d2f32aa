"""Compute a mask for a model and what it is to forget, as one safetensors file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erasure.errors import OutputError, RunError
from erasure.mask import Mask
from erasure.models import load_model
from erasure.processes import device
from erasure.run import fingerprint, held, is_main, writing
from erasure.saliency import SaliencySettings, build_mask
from erasure.subjects import Wanted, subject_of


def make_mask(
    model: str,
    wanted: Wanted,
    out: str | Path,
    settings: SaliencySettings,
    *,
    kind: str = "saliency",
    seed: int = 0,
    checkpoint_every: int = 50,
) -> dict[str, Any]:
    """Write the mask of `kind` (saliency, random or inverted) to `out`; returns its density, by block too.

    A killed pass continues from `<out>.partial`. A file that holds the mask of these very settings is kept; a file that
    holds anything else is refused.
    """
    settings.check()
    path = Path(out)
    if path.is_dir():
        raise OutputError(f"--out {path} is a folder: give a file such as {path / 'mask.safetensors'}")
    loaded = load_model(model).to(device())
    subject = subject_of(loaded, wanted, seed)
    about = {**subject.settings, "forget": subject.task.forget}
    given = {"kind": kind, "model": loaded.hash, "about": about, "seed": seed}
    key = fingerprint({**given, **asdict(settings)})
    with _alone(path):
        if path.exists():
            mask = Mask.load(path)
            if mask.provenance.get("fingerprint") != key:
                raise RunError(f"--out {path} holds the mask of other settings: give another --out or remove it")
        else:
            began = time.perf_counter()
            partial = path.with_name(f".{path.name}.partial")
            task = subject.task
            forgotten = subject.dataset.of_classes(task.forget)
            made = build_mask(kind, loaded, forgotten, settings, seed, partial, key, task.concept, checkpoint_every)
            extra = {"fingerprint": key, "kind": kind, "seconds": time.perf_counter() - began}
            mask = Mask(made.tensors, {**made.provenance, **extra})
            if is_main():
                mask.save(path)
                partial.unlink(missing_ok=True)
    return {
        "mask": str(path),
        "density": mask.density,
        "selected": mask.selected,
        "weights": mask.total,
        "blocks": mask.by_block(),
        "seconds": mask.provenance["seconds"],
        "provenance": mask.provenance,
    }


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the file that is to be written."""
    if not is_main():
        yield
        return
    beside = path.with_name(f".{path.name}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = held(beside, path)
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)
        lock.release()
