"""make_mask: compute a mask into a file, or read one that was made for the model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from erasure.core.distributed import device, is_main
from erasure.core.errors import MaskError, OptionError, OutputError, RunError, suggestion
from erasure.core.files import held, writing
from erasure.core.records import Facts, Record
from erasure.core.run_dir import fingerprint
from erasure.erasing.targets import TargetSpec, target_of
from erasure.models import Model, load_model
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, build_mask

MASKS = ("saliency", "none", "random", "inverted")
SCORED = ("saliency", "inverted")  # those that are made from gradients on what is to be forgotten


@dataclass(frozen=True)
class MaskResult(Record):
    """The file of a mask, the share and number of weights in it, in all and by block, and how it was made."""

    mask: str
    density: float
    selected: int
    weights: int
    blocks: Mapping[str, Mapping[str, float]]
    seconds: float
    provenance: Facts


def make_mask(
    model: str,
    spec: TargetSpec,
    out: str | Path,
    settings: SaliencyConfig,
    *,
    kind: str = "saliency",
    seed: int = 0,
    checkpoint_every: int = 50,
) -> MaskResult:
    """Write the mask of `kind` (saliency, random or inverted) to `out`.

    A killed pass continues from `<out>.partial`. A file that holds the mask of these very settings is kept; a file that
    holds anything else is refused.
    """
    settings.check()
    path = Path(out)
    if path.is_dir():
        raise OutputError(f"--out {path} is a folder: give a file such as {path / 'mask.safetensors'}")
    loaded = load_model(model).to(device())
    target = target_of(loaded, spec, seed)
    target.need_forget()
    about = {**target.settings, "forget": target.task.forget}
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
            forgotten, title = target.forget_data, target.task.concept
            made = build_mask(kind, loaded, forgotten, settings, seed, partial, key, title, checkpoint_every)
            extra = {"fingerprint": key, "kind": kind, "seconds": time.perf_counter() - began}
            mask = Mask(made.tensors, {**made.provenance, **extra})
            if is_main():
                mask.save(path)
                partial.unlink(missing_ok=True)
    seconds = mask.provenance["seconds"]
    return MaskResult(str(path), mask.density, mask.selected, mask.total, mask.by_block(), seconds, mask.provenance)


def read_mask(path: str, model: Model) -> Mask:
    """The mask in a file, made for this very model; raises MaskError when it is another's, OptionError for no file."""
    if not Path(path).exists() and "/" not in path and not path.endswith(".safetensors"):
        raise OptionError(f"unknown --mask {path!r}{suggestion(path, MASKS)}: expected a file, or {', '.join(MASKS)}")
    mask = Mask.load(path)
    check_mask(mask, path, model)
    return mask


def check_mask(mask: Mask, name: str, model: Model) -> None:
    """Raise MaskError unless the mask was made for this very model."""
    mask.check(model.network)
    made_for = mask.provenance.get("model_hash")
    if made_for not in (None, model.hash):
        raise MaskError(
            f"--mask {name} was made for other weights (model hash {made_for[:12]}, this one has {model.hash[:12]}): "
            "make one with `erasure mask --model <this model>`"
        )


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
