"""Networks of transformers: found in a folder or on the hub, and loaded from safetensors without running its code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from erasure.core.errors import ModelError
from erasure.core.files import read_json
from erasure.formats.safetensors_io import check_finite
from erasure.models import resolve

BATCH_SIZE = 32
LOCAL: dict[str, Any] = {"local_files_only": True}  # fetching is done before, once


def local_folder(given: str) -> Path:
    """The folder of the model `given`: a folder, a run, a shipped name, or a hub id, which is fetched if need be.

    Raises ModelError when it is none of them or cannot be fetched.
    """
    try:
        source = resolve(given)
    except ModelError as error:  # its message names --model, which is another flag
        raise ModelError(error.message.removeprefix("--model ")) from error
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "merges.txt"]))
    except Exception as error:  # the hub's client raises a dozen kinds for one meaning
        raise ModelError(
            f"{given} is no folder here and cannot be read from the hub ({type(error).__name__}): "
            "check the spelling, or the network, or download it first"
        ) from error


def folder_of(given: str, model_type: str, called: str) -> Path:
    """`local_folder`, which must hold a model of this type; raises ModelError for another, which is not `called`."""
    folder = local_folder(given)
    config = read_json(folder / "config.json", ModelError) if (folder / "config.json").is_file() else {}
    if config.get("model_type", model_type) != model_type:
        raise ModelError(f"{given} is not a {called}: its config.json says {config['model_type']!r}")
    return folder


def load_network(kind: Any, folder: Path) -> Any:
    """A network of the transformers class `kind`, float32, in evaluation mode; no code of the folder runs.

    Raises ModelError when its weights are missing, a pickle, incomplete, damaged or not finite.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: expected a model folder of transformers")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(folder.glob("*.bin"))
        hint = f"{pickled[0].name} is a pickle, which can run code: convert it first" if pickled else "they are missing"
        raise ModelError(f"{folder} has no weights in safetensors: {hint}")
    with _silent():
        try:
            network, found = kind.from_pretrained(
                str(folder), use_safetensors=True, trust_remote_code=False, output_loading_info=True, **LOCAL
            )
        except Exception as error:  # transformers raises a dozen kinds for one meaning
            raise ModelError(f"{folder} cannot be loaded as {kind.__name__}: {first_line(error)}") from error
    missing = sorted({*map(str, found["missing_keys"]), *map(str, found["mismatched_keys"])})
    if missing:
        raise ModelError(f"{folder} does not fit its config.json: {len(missing)} tensors differ, first {missing[0]!r}")
    check_finite(network, folder)
    return network.float().eval().requires_grad_(False)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence transformers: what a file lacks is said by an error of ours, in one line."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def first_line(error: Exception) -> str:
    """The first line of an error; a key that is not there is named as such."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
