"""Model families, and the one door to them: a shipped name, a folder, a single file, a run, or a hub id."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from erasure.core import registry
from erasure.core.errors import ModelError, RunError, suggestion
from erasure.core.logging import log_warning_once
from erasure.core.run_dir import read_record
from erasure.core.shipped import shipped
from erasure.models.base import Model

SUFFIXES = (".safetensors", ".ckpt")  # of single files
M = TypeVar("M", bound=Model)
PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
# Of a hub repository: configurations, vocabularies, the weights of each part, but no copy in one file or other format.
HUB_FILES = ("*.json", "*.txt", "model*.safetensors", "diffusion_*.safetensors", *(f"{p}/*.safetensors" for p in PARTS))
HUB_COPIES = ("*non_ema*", "*.fp16.*", "*.fp16-*", "*.bf16.*")


def shipped_folder() -> Path:
    """Where the models that ship with the project are: beside the package in a checkout, inside it when installed."""
    return shipped("checkpoints")


def shipped_names() -> tuple[str, ...]:
    """Names of the models that ship with the project."""
    root = shipped_folder()
    return tuple(sorted(path.name for path in root.iterdir() if path.is_dir())) if root.is_dir() else ()


def resolve(given: str | Path) -> str:
    """The folder, file or hub id that `given` means: a run means its cleaned model; a shipped name, its checkpoint.

    Raises ModelError when it is none of them.
    """
    text = str(given).rstrip("/")
    path = Path(text)
    if path.is_file():
        return _single_file(path)
    if path.is_dir():
        return str(_model_folder(path))
    name = text.removeprefix("checkpoints/")
    if name in shipped_names():
        return str(shipped_folder() / name)
    if text.count("/") == 1 and not text.startswith((".", "/", "~", "checkpoints/")) and path.suffix not in SUFFIXES:
        return text
    raise ModelError(f"--model {text} does not exist{suggestion(text, shipped_names())}")


def _single_file(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"--model {path} is a file: expected a model folder, a run folder, a single file "
            f"({' or '.join(SUFFIXES)}), or a hub id"
        )
    return str(path)


def _model_folder(path: Path) -> Path:
    """The folder of a model; of a run, that of its cleaned model."""
    if not (path / "run.json").is_file():
        return path
    if not (path / "model").is_dir():
        raise ModelError(f"{path} is a run without a finished model: run its command again to finish it")
    return path / "model"


def located(given: str | Path) -> str:
    """What `given` means, in words that hold from any folder: an absolute path, or a hub id."""
    source = resolve(given)
    return str(Path(source).resolve()) if Path(source).exists() else source


def load_model(given: str | Path) -> Model:
    """Load whatever `given` means; raises ModelError when it is missing, damaged, or of no known family."""
    source = resolve(given)
    _warn_unfinished(Path(source))
    if Path(source).is_file():
        from erasure.models.from_single_file import load_single

        return load_single(Path(source))
    if not Path(source).is_dir():
        return _from_hub(source)
    if not any(Path(source).iterdir()):
        raise ModelError(f"{source} is empty: expected a diffusers or transformers model folder")
    for name in registry.names("models"):
        family = registry.load("models", name)
        if family.recognises(Path(source)):
            return family.load(source)
    raise ModelError(
        f"{source} is not a model of a known family ({', '.join(registry.names('models'))}): "
        "expected model_index.json or config.json of an unconditional or class-conditional UNet2DModel, or of a "
        "classifier (ResNet, Swin, VGG)"
    )


def _warn_unfinished(folder: Path) -> None:
    """Say which weights these are when `folder` is the model of a run that is not done: they are no result."""
    if folder.name != "model" or not (folder.parent / "run.json").is_file():
        return
    try:
        document = read_record(folder.parent / "run.json")
    except RunError:  # of another program
        return
    if document["status"] == "diverged":
        found: Mapping[str, Any] = document.get("diverged", {})
        what = f"the weights of step {found.get('step', '?')}, because {found.get('reason', 'training diverged')}"
    elif document["status"] != "done":
        steps = document.get("trained", {}).get("steps")
        what = f"the weights {f'after {steps} steps' if steps else 'so far'}, because its command was never finished"
    else:
        return
    log_warning_once(f"{folder.parent} is no finished run: it holds {what}")


def load_pipeline(pipeline: Any) -> Model:
    """The model of a stock pipeline in memory, which stays as it is; its `source` is empty.

    Raises ModelError for a pipeline of no known family.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)
        model = load_model(folder)
    model.source = ""
    return model


def load_unchanged(given: str | Path, expected_hash: str, of: str) -> Model:
    """Load the model that `of` was made from, its hashes kept; raises ModelError when its weights have changed."""
    model = load_model(given)
    model.keep_hashes()
    check_unchanged(given, f"the model of {of}", (model.hash, expected_hash))
    return model


def check_unchanged(given: object, what: str, *hashes: tuple[str, str | None]) -> None:
    """Raise ModelError, saying that `given` is no longer `what`, when a hash is not the recorded one.

    `hashes` are pairs of what was found and what was recorded, None where nothing was.
    """
    for found, recorded in hashes:
        if recorded is not None and found != recorded:
            raise ModelError(
                f"{given} is no longer {what}: its weights have changed since (SHA-256 {found[:12]}, expected "
                f"{recorded[:12]})"
            )


def load_family(given: str | Path, family: type[M]) -> M:
    """Load a model that must be a `family`; raises ModelError when it is another."""
    model = load_model(given)
    if not isinstance(model, family):
        raise ModelError(f"{given} is a {model.family} model: expected a {family.__name__.lower()}")
    return model


def _from_hub(name: str) -> Model:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_COPIES))
    except Exception as error:  # the hub's client raises a dozen kinds for one meaning
        raise ModelError(
            f"--model {name} is no folder here and cannot be read from the hub ({type(error).__name__}): "
            "check the spelling, or the network, or download it first"
        ) from error
    model = load_model(folder)
    model.source = name
    return model
