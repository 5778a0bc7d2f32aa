"""Runs to export: erasures of the tiny pipelines, from a folder and from a user's own file."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from erasure.erasing.erase import EraseRequest, erase
from erasure.erasing.targets import TargetSpec
from erasure.formats.safetensors_stream import write_ordered
from tests.support.tiny_pipelines import Written, written

TRAINING_IMAGES = {"num_forget_images": 2, "num_retain_images": 2, "training_image_inference_steps": 2}
OPTIONS = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3}


PROVENANCE = {
    "tool": "erasure 0",
    "base": "b",
    "base_hash": "0" * 64,
    "hash": "1" * 64,
    "forget": "cat",
    "anchor": [""],
    "concept": {"name": "cat", "forget": [{"text": "cat", "anchor": "", "shows": []}], "retain": []},
    "method": "salun",
    "mask": "random",
    "mask_density": 0.5,
    "seed": 0,
    "changed_weights": 1,
    "total_weights": 2,
    "metrics": {},
}


@dataclass(frozen=True)
class Runs:
    """A tiny pipeline, the same as a user's file in half precision, and a run that began from each."""

    tiny: Written
    theirs: Path
    from_folder: Path
    from_file: Path


def erased(model: Path, out: Path, cache: Path) -> Path:
    """A run that moves half of the UNet's weights a little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(cache))
        wanted = TargetSpec(forget="cat", training_images=TRAINING_IMAGES)
        erase(EraseRequest(str(model), wanted, mask="random", options=OPTIONS, evaluate=False), out)
    return out


@functools.cache
def runs(kind: str) -> Runs:
    """Both runs of a kind (sd1, sd2, sdxl), made once; nobody changes them."""
    root = Path(tempfile.mkdtemp(prefix=f"runs-{kind}-"))
    tiny = written(kind, root)
    theirs = users_file(tiny, root / "theirs.safetensors")
    return Runs(
        tiny, theirs, erased(tiny.folder, root / "run", root / "cache"), erased(theirs, root / "run2", root / "cache")
    )


def users_file(tiny: Written, path: Path) -> Path:
    """Half precision, another order, tensors that no component has, an averaged copy, metadata of a trainer."""
    tensors = load_file(tiny.file)
    own = {name: tensors[name].half() for name in sorted(tensors, reverse=True)}
    own["alphas_cumprod"] = torch.linspace(1, 0, 7, dtype=torch.float64)
    own["model_ema.diffusion_modelinput_blocks00weight"] = torch.ones(3, dtype=torch.float16)
    write_ordered(path, own, {"modelspec.title": "mine", "modelspec.hash_sha256": "0x12", **tiny.embedded})
    return path
